//! Eight-bit floats, for storage and casts.
//!
//! Both convert through f32 with rounding to nearest even. E4M3 is the "fn" form of accelerators: no
//! infinities, 0x7f and 0xff are NaN, finite values beyond 448 saturate (as the hardware's saturating
//! conversion does). E5M2 follows IEEE: overflow becomes infinity.

/// Eight bits: sign, 4 exponent bits (bias 7), 3 mantissa bits. Largest finite value 448.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8E4M3(pub u8);

/// Eight bits: sign, 5 exponent bits (bias 15), 2 mantissa bits. Largest finite value 57344.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F8E5M2(pub u8);

/// Magnitude bits of `value` rounded to `mantissa` bits with exponent bias `bias`, not yet saturated.
fn round_magnitude(value: f32, mantissa: u32, bias: i32) -> u32 {
    let magnitude = f64::from(value.abs());
    if magnitude == 0.0 {
        return 0;
    }
    let exponent = (magnitude.log2().floor() as i32).max(1 - bias);
    // log2 may land one off next to a power of two; the rounding below absorbs it, because the
    // scaled mantissa then simply reaches or misses its top bit.
    let unit = f64::from(exponent - mantissa as i32).exp2();
    let scaled = (magnitude / unit).round_ties_even() as u32;
    // `scaled` has its implicit bit at position `mantissa` for normal numbers; subnormals lack it.
    (((exponent + bias - 1) as u32) << mantissa) + scaled
}

fn widen(bits: u8, mantissa: u32, bias: i32) -> f32 {
    let magnitude = u32::from(bits & 0x7f);
    let exponent = magnitude >> mantissa;
    let fraction = f64::from(magnitude & ((1 << mantissa) - 1));
    let scale = f64::from(1 << mantissa);
    let value = if exponent == 0 {
        fraction / scale * f64::from(1 - bias).exp2()
    } else {
        (1.0 + fraction / scale) * f64::from(exponent as i32 - bias).exp2()
    };
    if bits & 0x80 == 0 { value as f32 } else { -value as f32 }
}

impl F8E4M3 {
    /// Rounds to nearest even and saturates at 448; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        if value.is_nan() {
            return Self(sign | 0x7f);
        }
        let bits = if value.is_infinite() { 0x7e } else { round_magnitude(value, 3, 7).min(0x7e) };
        Self(sign | bits as u8)
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        if self.0 & 0x7f == 0x7f { f32::NAN } else { widen(self.0, 3, 7) }
    }
}

impl F8E5M2 {
    /// Rounds to nearest even; too large becomes infinity; NaN stays NaN.
    pub fn from_f32(value: f32) -> Self {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        if value.is_nan() {
            return Self(sign | 0x7f);
        }
        let bits = if value.is_infinite() { 0x7c } else { round_magnitude(value, 2, 15).min(0x7c) };
        Self(sign | bits as u8)
    }

    /// The exact value.
    pub fn to_f32(self) -> f32 {
        match self.0 & 0x7f {
            0x7c if self.0 & 0x80 == 0 => f32::INFINITY,
            0x7c => f32::NEG_INFINITY,
            magnitude if magnitude > 0x7c => f32::NAN,
            _ => widen(self.0, 2, 15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite pattern survives the round trip, and midpoints go to the even neighbour.
    #[test]
    fn round_trip_and_ties() {
        for bits in 0..=255u8 {
            let value = F8E4M3(bits).to_f32();
            if !value.is_nan() {
                assert_eq!(F8E4M3::from_f32(value).0, bits, "e4m3 {value}");
            }
            let value = F8E5M2(bits).to_f32();
            if !value.is_nan() {
                assert_eq!(F8E5M2::from_f32(value).0, bits, "e5m2 {value}");
            }
        }
        for bits in 0..0x7du8 {
            let middle = (F8E4M3(bits).to_f32() + F8E4M3(bits + 1).to_f32()) / 2.0;
            assert_eq!(F8E4M3::from_f32(middle).0, bits + (bits & 1), "tie at {middle}");
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(F8E4M3(0x7e).to_f32(), 448.0);
        assert_eq!(F8E4M3::from_f32(1e9).to_f32(), 448.0);
        assert_eq!(F8E4M3(0x01).to_f32(), 2f32.powi(-9));
        assert_eq!(F8E5M2(0x7b).to_f32(), 57344.0);
        assert_eq!(F8E5M2::from_f32(1e9).to_f32(), f32::INFINITY);
        assert!(F8E4M3::from_f32(f32::NAN).to_f32().is_nan());
    }
}

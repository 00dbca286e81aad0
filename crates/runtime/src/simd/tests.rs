//! Every instruction set computes the same as the standard library in f64, to the stated accuracy.

use super::*;

/// Applies a function to a list of any length, vector by vector.
struct Map<'a, G>(&'a [f32], &'a mut [f32], G);

trait Function {
    fn call<S: Simd>(&self, s: S, x: S::F) -> S::F;
}

impl<G: Function> Kernel for Map<'_, G> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Map(input, output, function) = self;
        for start in (0..input.len()).step_by(S::LANES) {
            let count = (input.len() - start).min(S::LANES);
            // SAFETY: `count` elements from `start` lie in both slices.
            unsafe {
                let x = s.load_partial(input.as_ptr().add(start), count.min(S::LANES - 1));
                let x = if count == S::LANES { s.load(input.as_ptr().add(start)) } else { x };
                let y = function.call(s, x);
                if count == S::LANES {
                    s.store(output.as_mut_ptr().add(start), y);
                } else {
                    s.store_partial(output.as_mut_ptr().add(start), y, count);
                }
            }
        }
    }
}

macro_rules! check {
    ($name:ident, $reference:expr, $low:expr, $high:expr, $tolerance:expr) => {
        #[test]
        fn $name() {
            struct F;
            impl Function for F {
                #[inline(always)]
                fn call<S: Simd>(&self, s: S, x: S::F) -> S::F {
                    math::$name(s, x)
                }
            }
            let n = 100_003;
            let (low, high): (f64, f64) = ($low, $high);
            let input: Vec<f32> =
                (0..n).map(|i| (low + (high - low) * i as f64 / (n - 1) as f64) as f32).collect();
            for isa in Isa::ALL {
                let mut output = vec![0f32; n];
                let ran = with_isa(isa, || dispatch(Map(&input, &mut output, F)));
                if ran.is_none() {
                    continue;
                }
                for (&x, &y) in input.iter().zip(&output) {
                    let exact: f64 = $reference(f64::from(x));
                    let error = (f64::from(y) - exact).abs() / exact.abs().max(1e-30);
                    assert!(
                        error < $tolerance,
                        "{isa:?} {x}: {y} instead of {exact}, error {error:e}"
                    );
                }
            }
        }
    };
}

check!(exp, f64::exp, -87.0, 88.0, 2.5e-7);
check!(exp_negative, f64::exp, -87.0, 0.0, 2.5e-7);
check!(exp2, f64::exp2, -126.0, 127.0, 2.5e-7);
check!(ln, f64::ln, 1e-30, 100.0, 2.5e-7);
check!(sigmoid, |x: f64| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0, 4e-7);
check!(tanh, f64::tanh, -12.0, 12.0, 4e-7);
check!(softplus, |x: f64| x.exp().ln_1p(), -60.0, 40.0, 6e-7);

#[test]
fn special_values_of_exp2() {
    struct F;
    impl Function for F {
        #[inline(always)]
        fn call<S: Simd>(&self, s: S, x: S::F) -> S::F {
            math::exp2(s, x)
        }
    }
    for isa in Isa::ALL {
        let input = [f32::NEG_INFINITY, f32::INFINITY, -1000.0, 0.0, 1000.0, f32::NAN];
        let mut output = [9f32; 6];
        if with_isa(isa, || dispatch(Map(&input, &mut output, F))).is_none() {
            continue;
        }
        let (least, most) = (f32::MIN_POSITIVE, f32::INFINITY);
        assert_eq!(output[..5], [least, most, least, 1.0, most], "{isa:?}");
        assert!(output[5].is_nan(), "{isa:?}: exp2(NaN) = {}", output[5]);
    }
}

#[test]
fn special_values_of_exp() {
    struct F;
    impl Function for F {
        #[inline(always)]
        fn call<S: Simd>(&self, s: S, x: S::F) -> S::F {
            math::exp(s, x)
        }
    }
    for isa in Isa::ALL {
        let input = [f32::NEG_INFINITY, f32::INFINITY, -1000.0, 0.0, f32::NAN];
        let mut output = [9f32; 5];
        if with_isa(isa, || dispatch(Map(&input, &mut output, F))).is_none() {
            continue;
        }
        assert_eq!(output[..4], [0.0, f32::INFINITY, 0.0, 1.0], "{isa:?}");
        assert!(output[4].is_nan(), "{isa:?}: exp(NaN) = {}", output[4]);
    }
}

/// erf is bounded absolutely: 7.1.26 promises 1.5e-7, rounding adds as much.
#[test]
fn erf_is_close() {
    struct F;
    impl Function for F {
        #[inline(always)]
        fn call<S: Simd>(&self, s: S, x: S::F) -> S::F {
            math::erf(s, x)
        }
    }
    let known = [
        (0.0f32, 0.0f64),
        (0.1, 0.1124629160),
        (0.24, 0.2657000590),
        (0.5, 0.5204998778),
        (1.0, 0.8427007929),
        (2.0, 0.9953222650),
        (3.5, 0.9999992569),
        (-1.0, -0.8427007929),
    ];
    let input: Vec<f32> = known.iter().map(|case| case.0).collect();
    for isa in Isa::ALL {
        let mut output = vec![0f32; input.len()];
        if with_isa(isa, || dispatch(Map(&input, &mut output, F))).is_none() {
            continue;
        }
        for (&(x, exact), &y) in known.iter().zip(&output) {
            assert!((f64::from(y) - exact).abs() < 6e-7, "{isa:?} erf({x}) = {y}, not {exact}");
        }
    }
}

#[test]
fn bf16_rounds_like_the_half_crate() {
    struct Round<'a>(&'a [f32], &'a mut [u16]);
    impl Kernel for Round<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for start in (0..self.0.len()).step_by(S::LANES) {
                // SAFETY: the test's length is a multiple of every vector's.
                unsafe {
                    let value = s.load(self.0.as_ptr().add(start));
                    s.store_bf16(self.1.as_mut_ptr().add(start), value);
                }
            }
        }
    }
    let mut input: Vec<f32> = (0..1u32 << 16)
        .map(|i| f32::from_bits(i.wrapping_mul(65_539).wrapping_add(i >> 3)))
        .collect();
    input[0] = f32::NAN;
    input[1] = f32::INFINITY;
    let expected: Vec<u16> = input.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
    for isa in Isa::ALL {
        let mut output = vec![0u16; input.len()];
        if with_isa(isa, || dispatch(Round(&input, &mut output))).is_some() {
            assert_eq!(output, expected, "{isa:?}");
        }
    }
}

/// Bytes, signs, tables and masks: exact on every instruction set, for all byte values.
#[test]
fn bytes_and_tables_are_exact() {
    struct Bytes<'a> {
        bytes: &'a [u8],
        values: &'a [f32; 16],
        unsigned: &'a mut [f32],
        widened: &'a mut [f32],
        signed: &'a mut [f32],
        looked_up: &'a mut [f32],
        masked: &'a mut [f32],
    }
    impl Kernel for Bytes<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let table = s.scale_table(s.table(self.values), s.splat(0.5));
            let table = s.shift_table(table, s.splat(-3.0));
            for start in (0..256).step_by(S::LANES) {
                // SAFETY: 256 is a multiple of every vector's length; all slices are that long.
                unsafe {
                    let unsigned = s.load_u8(self.bytes.as_ptr().add(start));
                    let number = (0..S::LANES).rev().fold(0u128, |number, lane| {
                        number << 8 | u128::from(self.bytes[start + lane])
                    });
                    s.prefetch(self.bytes.as_ptr());
                    s.store(self.widened.as_mut_ptr().add(start), s.from_i(s.widen_u8(number)));
                    let signed = s.load_i8(self.bytes.as_ptr().add(start));
                    s.store(self.unsigned.as_mut_ptr().add(start), s.from_i(unsigned));
                    s.store(self.signed.as_mut_ptr().add(start), s.from_i(signed));
                    let found = s.lookup(table, unsigned);
                    s.store(self.looked_up.as_mut_ptr().add(start), found);
                    let mask = s.positive_i(signed);
                    let chosen = s.select(mask, s.splat(1.0), s.splat(-1.0));
                    s.store(self.masked.as_mut_ptr().add(start), chosen);
                }
            }
        }
    }
    struct Half(u16);
    impl Kernel for Half {
        type Out = [f32; 2];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; 2] {
            [s.widen_half(self.0), s.reduce_max(s.splat_half(self.0))]
        }
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let values: [f32; 16] = std::array::from_fn(|i| (i * i) as f32 - 7.25);
    for isa in Isa::ALL {
        let mut out = [(); 5].map(|()| vec![0f32; 256]);
        let [unsigned, signed, looked_up, masked, widened] = &mut out;
        let (bytes, values) = (&bytes, &values);
        let kernel = Bytes { bytes, values, unsigned, widened, signed, looked_up, masked };
        if with_isa(isa, || dispatch(kernel)).is_none() {
            continue;
        }
        for (i, &byte) in bytes.iter().enumerate() {
            assert_eq!(out[0][i], f32::from(byte), "{isa:?}");
            assert_eq!(out[4][i], f32::from(byte), "{isa:?}");
            assert_eq!(out[1][i], f32::from(byte as i8), "{isa:?}");
            assert_eq!(out[2][i], values[i % 16] * 0.5 - 3.0, "{isa:?} {i}");
            assert_eq!(out[3][i], if byte as i8 > 0 { 1.0 } else { -1.0 }, "{isa:?} {i}");
        }
        for bits in [0u16, 1, 0x03ff, 0x3c00, 0xc500, 0x7bff, 0x7c00, 0xfc00] {
            let value = with_isa(isa, || dispatch(Half(bits)));
            assert_eq!(value, Some([half::f16::from_bits(bits).to_f32(); 2]), "{isa:?} {bits:x}");
        }
    }
}

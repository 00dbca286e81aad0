//! What follows the recurrence: the skip connection and the gate, fused into the store of `y`; and the
//! gate's backward pass.

use super::rows::Source;
use super::tile::padded;
use danaus_runtime::simd::{Kernel, Lane, Simd, math};
use half::bf16;

/// `y <- (y + d x) silu(z)` on padded tiles.
pub struct Epilogue<'a> {
    /// Tile of the recurrence's output, updated.
    pub y: &'a mut [f32],
    /// Tile of the input.
    pub x: &'a [f32],
    /// One factor a column.
    pub d: Option<&'a [f32]>,
    /// Tile of the gate.
    pub z: Option<&'a [f32]>,
    /// Rows.
    pub rows: usize,
    /// Columns before padding.
    pub columns: usize,
}

impl Kernel for Epilogue<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = padded(self.columns);
        let len = self.rows * width;
        assert!(self.y.len() >= len && self.x.len() >= len);
        assert!(self.z.is_none_or(|z| z.len() >= len));
        assert!(self.d.is_none_or(|d| d.len() >= self.columns));
        for column in (0..self.columns).step_by(S::LANES) {
            let count = (self.columns - column).min(S::LANES);
            let factor = match self.d {
                // SAFETY: `count` elements lie in `d`.
                Some(d) => unsafe { load_up_to(s, d.as_ptr().add(column), count) },
                None => s.zero(),
            };
            for at in (column..len).step_by(width) {
                // SAFETY: `at` lies in a row and the padding completes the vector.
                unsafe {
                    let y = self.y.as_mut_ptr().add(at);
                    let mut value = s.fma(factor, s.load(self.x.as_ptr().add(at)), s.load(y));
                    if let Some(z) = self.z {
                        let z = s.load(z.as_ptr().add(at));
                        value = s.mul(value, s.mul(z, math::sigmoid(s, z)));
                    }
                    s.store(y, value);
                }
            }
        }
    }
}

/// A full or partial vector.
///
/// # Safety
/// `count` elements are readable.
#[inline(always)]
unsafe fn load_up_to<S: Simd, T: Lane>(s: S, from: *const T, count: usize) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { if count >= S::LANES { T::load(s, from) } else { T::load_partial(s, from, count) } }
}

/// Gradients through `out = y silu(z)`, on contiguous pieces of equal length:
/// `dy = dout silu(z)` and `dz = dout y sigmoid(z) (1 + z (1 - sigmoid(z)))`.
pub struct GateBackward<'a> {
    /// Output of the recurrence before the gate.
    pub y: &'a [f32],
    /// The gate.
    pub z: Source<'a>,
    /// Cotangent of the gated output.
    pub dout: Source<'a>,
    /// Gradient of `y`.
    pub dy: &'a mut [f32],
    /// Gradient of `z`.
    pub dz: GateTarget<'a>,
}

/// Where the gradient of `z` goes.
pub enum GateTarget<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Rounded to nearest even.
    Bf16(&'a mut [bf16]),
}

impl Kernel for GateBackward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.z, self.dout, self.dz) {
            (Source::F32(z), Source::F32(dout), GateTarget::F32(dz)) => {
                gate_backward(s, self.y, z, dout, self.dy, dz);
            }
            (Source::Bf16(z), Source::Bf16(dout), GateTarget::Bf16(dz)) => {
                gate_backward(s, self.y, z, dout, self.dy, dz);
            }
            _ => unreachable!("the gate, its gradient and the output share a type"),
        }
    }
}

#[inline(always)]
fn gate_backward<S: Simd, T: Lane>(
    s: S,
    y: &[f32],
    z: &[T],
    dout: &[T],
    dy: &mut [f32],
    dz: &mut [T],
) {
    let len = y.len();
    assert!(z.len() == len && dout.len() == len && dy.len() == len && dz.len() == len);
    let one = s.splat(1.0);
    for at in (0..len).step_by(S::LANES) {
        let count = (len - at).min(S::LANES);
        // SAFETY: `count` elements from `at` lie in every slice.
        unsafe {
            let gate = load_up_to(s, z.as_ptr().add(at), count);
            let grad = load_up_to(s, dout.as_ptr().add(at), count);
            let value = load_up_to(s, y.as_ptr().add(at), count);
            let sigmoid = math::sigmoid(s, gate);
            let through = s.mul(grad, s.mul(gate, sigmoid));
            let slope = s.mul(sigmoid, s.fma(gate, s.sub(one, sigmoid), one));
            let gate_grad = s.mul(s.mul(grad, value), slope);
            if count == S::LANES {
                s.store(dy.as_mut_ptr().add(at), through);
                T::store(s, dz.as_mut_ptr().add(at), gate_grad);
            } else {
                s.store_partial(dy.as_mut_ptr().add(at), through, count);
                T::store_partial(s, dz.as_mut_ptr().add(at), gate_grad, count);
            }
        }
    }
}

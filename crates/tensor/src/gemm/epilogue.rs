//! What happens to a finished sum before it is stored.
//!
//! In this order: `v = alpha * sum + beta * C`, `v += bias[column]`, the copy before the activation,
//! the activation, `v += residual`, one rounding to the type of C. The steps run on a strip of a tile
//! right after its last block of k, while it lies in the first-level cache. With beta = 0, C is not
//! read, so that uninitialised or NaN contents do not matter.

use std::f32::consts::FRAC_1_SQRT_2;
use std::ops::Range;

use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch, math};
use half::bf16;

use super::erf::erf_f64;
use super::{Mat, MatMut};

/// Function applied to every element of C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x.
    #[default]
    Identity,
    /// max(x, 0).
    Relu,
    /// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    GeluTanh,
    /// x / 2 (1 + erf(x / sqrt(2))).
    GeluErf,
    /// x / (1 + e^-x).
    Silu,
}

/// Optional last steps of a product; see the module documentation for their order.
#[derive(Clone, Copy)]
pub struct Epilogue<C: Output> {
    /// One value a column of C, added before the activation.
    pub bias: Option<*const C::Acc>,
    /// Receives the values before the activation; same shape as C.
    pub preactivation: Option<MatMut<C>>,
    /// The activation.
    pub activation: Activation,
    /// Added after the activation; same shape as C. May be C itself.
    pub residual: Option<Mat<C>>,
}

// SAFETY: a description, as `Mat` is.
unsafe impl<C: Output> Send for Epilogue<C> {}
// SAFETY: as above.
unsafe impl<C: Output> Sync for Epilogue<C> {}

impl<C: Output> Default for Epilogue<C> {
    fn default() -> Self {
        Self { bias: None, preactivation: None, activation: Activation::Identity, residual: None }
    }
}

/// Element types of C.
pub trait Output: Copy + Send + Sync + 'static {
    /// Type of the sums: f32 for f32 and bf16, f64 for f64.
    type Acc: Copy + PartialEq + Send + Sync + 'static + std::ops::AddAssign;
    /// 0 of the accumulator type.
    #[doc(hidden)]
    const ZERO: Self::Acc;
    /// 1 of the accumulator type.
    #[doc(hidden)]
    const ONE: Self::Acc;
    /// Whether sums can be kept in C itself.
    #[doc(hidden)]
    const IS_ACC: bool;
    /// Finishes `rows` x `columns` of C from sums whose first element belongs to the first row and
    /// column of the ranges.
    ///
    /// # Safety
    /// The pointers of `finish` are valid for the ranges; nobody else touches them.
    #[doc(hidden)]
    unsafe fn finish(finish: &Finish<Self>, sums: Mat<Self::Acc>, at: (Range<usize>, Range<usize>));
}

/// The last steps with C, prepared for the blocked loops. Bias is a matrix with one stride zero, so
/// that a transposed product is the same thing.
#[derive(Clone, Copy)]
pub struct Finish<C: Output> {
    pub c: MatMut<C>,
    pub alpha: C::Acc,
    pub beta: C::Acc,
    pub bias: Option<Mat<C::Acc>>,
    pub preactivation: Option<MatMut<C>>,
    pub activation: Activation,
    pub residual: Option<Mat<C>>,
}

impl<C: Output> Finish<C> {
    pub fn new(c: MatMut<C>, alpha: C::Acc, beta: C::Acc, epilogue: &Epilogue<C>) -> Self {
        let bias = epilogue.bias.map(|ptr| Mat {
            ptr,
            rows: c.rows,
            cols: c.cols,
            row_stride: 0,
            col_stride: 1,
        });
        let Epilogue { preactivation, activation, residual, .. } = *epilogue;
        Self { c, alpha, beta, bias, preactivation, activation, residual }
    }

    /// The same steps for the transposed C.
    pub fn transposed(self) -> Self {
        Self {
            c: self.c.transposed(),
            bias: self.bias.map(Mat::transposed),
            preactivation: self.preactivation.map(MatMut::transposed),
            residual: self.residual.map(Mat::transposed),
            ..self
        }
    }

    /// The steps for a block of C.
    ///
    /// # Safety
    /// The ranges lie in C.
    pub unsafe fn narrow(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        // SAFETY: promised by the caller; all matrices have the shape of C.
        unsafe {
            Self {
                c: self.c.narrow(rows.clone(), cols.clone()),
                bias: self.bias.map(|bias| bias.narrow(rows.clone(), cols.clone())),
                preactivation: self.preactivation.map(|p| p.narrow(rows.clone(), cols.clone())),
                residual: self.residual.map(|r| r.narrow(rows.clone(), cols.clone())),
                ..*self
            }
        }
    }

    /// Whether the sums are the result.
    pub fn is_plain(&self) -> bool {
        self.alpha == C::ONE
            && self.beta == C::ZERO
            && self.bias.is_none()
            && self.preactivation.is_none()
            && self.activation == Activation::Identity
            && self.residual.is_none()
    }

    /// Whether sums may be kept in C until they are finished.
    pub fn in_place(&self) -> bool {
        // A residual that is C itself must not be overwritten by sums.
        C::IS_ACC && self.beta == C::ZERO && self.c.col_stride == 1 && self.residual.is_none()
    }
}

macro_rules! narrow_output {
    ($type:ty, $is_acc:literal) => {
        impl Output for $type {
            type Acc = f32;
            const ZERO: f32 = 0.0;
            const ONE: f32 = 1.0;
            const IS_ACC: bool = $is_acc;

            unsafe fn finish(
                finish: &Finish<Self>,
                sums: Mat<f32>,
                at: (Range<usize>, Range<usize>),
            ) {
                dispatch(FinishKernel { finish, sums, rows: at.0, cols: at.1 })
            }
        }
    };
}
narrow_output!(f32, true);
narrow_output!(bf16, false);

/// Finishes a rectangle of f32 sums; the pointers are valid as [`Output::finish`] demands.
struct FinishKernel<'a, C: Output> {
    finish: &'a Finish<C>,
    sums: Mat<f32>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<C: Output<Acc = f32> + Lane> Kernel for FinishKernel<'_, C> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let finish = self.finish;
        for (local_row, row) in self.rows.clone().enumerate() {
            for col in self.cols.clone().step_by(S::LANES) {
                let count = (self.cols.end - col).min(S::LANES);
                let at = (row, col);
                // SAFETY: the constructor's caller promised that the rectangle is valid.
                unsafe {
                    let sum = load(s, &self.sums, (local_row, col - self.cols.start), count);
                    let mut v = s.mul(s.splat(finish.alpha), sum);
                    if finish.beta != 0.0 {
                        let old = load(s, &finish.c.as_mat(), at, count);
                        v = s.fma(s.splat(finish.beta), old, v);
                    }
                    if let Some(bias) = &finish.bias {
                        v = s.add(v, load(s, bias, at, count));
                    }
                    if let Some(preactivation) = &finish.preactivation {
                        store(s, preactivation, at, count, v);
                    }
                    v = activate(s, finish.activation, v);
                    if let Some(residual) = &finish.residual {
                        v = s.add(v, load(s, residual, at, count));
                    }
                    store(s, &finish.c, at, count, v);
                }
            }
        }
    }
}

/// `count` elements of a row, widened; lanes beyond are unspecified.
#[inline(always)]
unsafe fn load<S: Simd, T: Lane>(s: S, m: &Mat<T>, at: (usize, usize), count: usize) -> S::F {
    // SAFETY: promised by the caller; the array holds the widest vector.
    unsafe {
        let from = m.at(at.0, at.1);
        if m.col_stride == 1 && count == S::LANES {
            return T::load(s, from);
        }
        let mut lanes = [T::default(); 16];
        for lane in 0..count {
            lanes[lane] = from.offset(lane as isize * m.col_stride).read();
        }
        T::load(s, lanes.as_ptr())
    }
}

/// Rounds and writes `count` elements of a row.
#[inline(always)]
unsafe fn store<S: Simd, T: Lane>(s: S, m: &MatMut<T>, at: (usize, usize), count: usize, v: S::F) {
    // SAFETY: promised by the caller; the array holds the widest vector.
    unsafe {
        let to = m.at(at.0, at.1);
        if m.col_stride == 1 && count == S::LANES {
            return T::store(s, to, v);
        }
        let mut lanes = [T::default(); 16];
        T::store(s, lanes.as_mut_ptr(), v);
        for lane in 0..count {
            to.offset(lane as isize * m.col_stride).write(lanes[lane]);
        }
    }
}

#[inline(always)]
fn activate<S: Simd>(s: S, activation: Activation, x: S::F) -> S::F {
    let half = |x| s.mul(s.splat(0.5), x);
    let one_plus = |y| s.add(s.splat(1.0), y);
    match activation {
        Activation::Identity => x,
        // This order keeps NaN.
        Activation::Relu => s.max(s.zero(), x),
        Activation::GeluTanh => {
            let cubic = s.fma(s.mul(s.splat(0.044_715), s.mul(x, x)), x, x);
            let inner = s.mul(s.splat(SQRT_2_OVER_PI as f32), cubic);
            s.mul(half(x), one_plus(math::tanh(s, inner)))
        }
        Activation::GeluErf => {
            s.mul(half(x), one_plus(math::erf(s, s.mul(s.splat(FRAC_1_SQRT_2), x))))
        }
        Activation::Silu => s.mul(x, math::sigmoid(s, x)),
    }
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// The activation in double precision.
pub fn activate_f64(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu if x < 0.0 => 0.0,
        Activation::Relu => x,
        Activation::GeluTanh => {
            0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

impl Output for f64 {
    type Acc = f64;
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const IS_ACC: bool = true;

    unsafe fn finish(finish: &Finish<f64>, sums: Mat<f64>, at: (Range<usize>, Range<usize>)) {
        let (rows, cols) = at;
        for (local_row, row) in rows.enumerate() {
            for col in cols.clone() {
                // SAFETY: promised by the caller.
                unsafe {
                    let mut v = finish.alpha * *sums.at(local_row, col - cols.start);
                    if finish.beta != 0.0 {
                        v += finish.beta * *finish.c.at(row, col);
                    }
                    if let Some(bias) = &finish.bias {
                        v += *bias.at(row, col);
                    }
                    if let Some(preactivation) = &finish.preactivation {
                        *preactivation.at(row, col) = v;
                    }
                    v = activate_f64(finish.activation, v);
                    if let Some(residual) = &finish.residual {
                        v += *residual.at(row, col);
                    }
                    *finish.c.at(row, col) = v;
                }
            }
        }
    }
}

//! Krylov matrices of banded operators, and dense matrices of low displacement rank.
//!
//! * `krylov`: for an operator A of n points with three diagonals and two corners, and vectors v_i,
//!   `K[i, k] = A^k v_i` for k below n: `[rank, n]` to `[rank, n, n]`, by n - 1 banded products.
//! * `stein`: the matrix M with `M - A M B^T = D` for operators that are zero but for their
//!   subdiagonals a and b: `M[i + 1, j + 1] = D[i + 1, j + 1] + a[i] b[j] M[i, j]`. Forward along
//!   diagonals, so it is stable for any a and b, zeros included: what matrices of low displacement rank
//!   fall back on where their scaled transforms would lose digits (Thomas, Gu, Dao, Rudra, Re, NeurIPS
//!   2018).
//!
//! Backward is the adjoint recursion. Both cost a pass over their result, which is kept for backward.
//! f64 for f64, f32 for f32 and bf16. A result that is not finite is refused: powers of an operator
//! whose norm exceeds 1 by more than a few over n overflow.

mod stein;

#[cfg(test)]
mod tests;

pub use stein::stein;

use crate::hook::{self, check_dtype, check_float, check_shape, dense_as, listed, required};
use crate::ops::toeplitz::fft::{Real, working};
use crate::ops::toeplitz::store;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::registry::{Arg, Args, OpSpec};
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use std::sync::Mutex;

/// An operator of n points: `A[i + 1, i] = sub[i]`, `A[i, i] = diag[i]`, `A[i, i + 1] = sup[i]`,
/// `A[0, n - 1] += corners[0]`, `A[n - 1, 0] += corners[1]`; what is absent is zero.
#[derive(Clone, Copy, Default)]
pub struct Bands<'a> {
    /// `[n - 1]`.
    pub sub: Option<&'a Tensor>,
    /// `[n]`.
    pub diag: Option<&'a Tensor>,
    /// `[n - 1]`.
    pub sup: Option<&'a Tensor>,
    /// `[2]`.
    pub corners: Option<&'a Tensor>,
}

/// `A^k v_i` for all k below n, `[rank, n (k), n]`.
///
/// # Errors
/// When shapes or dtypes do not fit, or a power overflows.
pub fn krylov(v: &Tensor, bands: Bands) -> Result<Tensor> {
    let inputs = [Some(v), bands.sub, bands.diag, bands.sup, bands.corners];
    hook::first(apply(Krylov, &inputs)?)
}

/// Inputs: v, sub, diag, sup, corners.
struct Krylov;

const NAME: &str = "krylov";
const BANDS: [&str; 4] = ["sub", "diag", "sup", "corners"];

/// The bands as numbers, zeros where absent.
struct Numbers<T> {
    sub: Vec<T>,
    diag: Vec<T>,
    sup: Vec<T>,
    corners: [T; 2],
}

/// Lengths of the bands.
fn lengths(n: usize) -> [usize; 4] {
    [n - 1, n, n - 1, 2]
}

impl<T: Real> Numbers<T> {
    fn new(n: usize, bands: [Option<&Tensor>; 4]) -> Result<Self> {
        let wide = T::DTYPE;
        let get = |index: usize| -> Result<Vec<T>> {
            match bands[index] {
                Some(tensor) => dense_as(tensor, wide)?.to_vec(),
                None => Ok(vec![T::zero(); lengths(n)[index]]),
            }
        };
        let corners = get(3)?;
        Ok(Self { sub: get(0)?, diag: get(1)?, sup: get(2)?, corners: [corners[0], corners[1]] })
    }

    /// `to = A from`.
    fn apply(&self, from: &[T], to: &mut [T]) {
        let n = from.len();
        for j in 0..n {
            to[j] = self.diag[j] * from[j];
        }
        for j in 0..n - 1 {
            to[j + 1] = to[j + 1] + self.sub[j] * from[j];
            to[j] = to[j] + self.sup[j] * from[j + 1];
        }
        to[0] = to[0] + self.corners[0] * from[n - 1];
        to[n - 1] = to[n - 1] + self.corners[1] * from[0];
    }

    /// `to += A^T from`.
    fn add_transposed(&self, from: &[T], to: &mut [T]) {
        let n = from.len();
        for j in 0..n {
            to[j] = to[j] + self.diag[j] * from[j];
        }
        for j in 0..n - 1 {
            to[j] = to[j] + self.sub[j] * from[j + 1];
            to[j + 1] = to[j + 1] + self.sup[j] * from[j];
        }
        to[n - 1] = to[n - 1] + self.corners[0] * from[0];
        to[0] = to[0] + self.corners[1] * from[n - 1];
    }

    /// Adds the gradients of the bands for `A c` with cotangent `e`.
    fn add_gradients(&mut self, e: &[T], c: &[T]) {
        let n = e.len();
        for j in 0..n {
            self.diag[j] = self.diag[j] + e[j] * c[j];
        }
        for j in 0..n - 1 {
            self.sub[j] = self.sub[j] + e[j + 1] * c[j];
            self.sup[j] = self.sup[j] + e[j] * c[j + 1];
        }
        self.corners[0] = self.corners[0] + e[0] * c[n - 1];
        self.corners[1] = self.corners[1] + e[n - 1] * c[0];
    }

    fn add(&mut self, other: &Self) {
        let sum = |to: &mut [T], from: &[T]| {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = *to + from);
        };
        sum(&mut self.sub, &other.sub);
        sum(&mut self.diag, &other.diag);
        sum(&mut self.sup, &other.sup);
        sum(&mut self.corners, &other.corners);
    }
}

/// Refuses a result that left the numbers.
fn check_finite<T: Real>(op: &'static str, values: &[T]) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => {
            let valid = "operators whose products stay finite: entries of size 1 at most";
            Err(Error::argument(op, "operators", "powers that overflow", valid))
        }
    }
}

fn forward<T: Real>(inputs: Inputs, k: &mut Tensor) -> Result<()> {
    let v = dense_as(required(NAME, inputs, 0, "v")?, T::DTYPE)?;
    let n = v.dims()[1];
    let bands = Numbers::<T>::new(n, bands(inputs))?;
    let (v, k) = (v.as_slice::<T>()?, k.as_slice_mut::<T>()?);
    let shared = SharedMut::new(k);
    threads::for_each(v.len() / n, |index| {
        // SAFETY: every vector's powers belong to one task.
        let powers = unsafe { shared.slice(index * n * n, n * n) };
        powers[..n].copy_from_slice(&v[index * n..][..n]);
        for step in 1..n {
            let (before, after) = powers.split_at_mut(step * n);
            bands.apply(&before[(step - 1) * n..], &mut after[..n]);
        }
    });
    check_finite(NAME, k)
}

fn backward<T: Real>(ctx: &Backward, dk: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (k, dk) = (dense_as(ctx.output(0)?, T::DTYPE)?, dense_as(dk, T::DTYPE)?);
    let [rank, n, _] = [k.dims()[0], k.dims()[1], k.dims()[2]];
    let given: Vec<Option<&Tensor>> = (1..5).map(|index| ctx.inputs[index].as_ref()).collect();
    let numbers = Numbers::<T>::new(n, [given[0], given[1], given[2], given[3]])?;
    let (k, dk) = (k.as_slice::<T>()?, dk.as_slice::<T>()?);
    let mut dv = vec![T::zero(); rank * n];
    let parts: Vec<Mutex<Numbers<T>>> =
        (0..rank).map(|_| Numbers::new(n, [None; 4]).map(Mutex::new)).collect::<Result<_>>()?;
    let to = SharedMut::new(&mut dv);
    threads::for_each(rank, |index| {
        // Every vector has its own sums, so that they are added in order.
        let mut sums = parts[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: and its own gradient.
        let e = unsafe { to.slice(index * n, n) };
        let (k, dk) = (&k[index * n * n..][..n * n], &dk[index * n * n..][..n * n]);
        e.copy_from_slice(&dk[(n - 1) * n..]);
        for step in (1..n).rev() {
            let c = &k[(step - 1) * n..][..n];
            sums.add_gradients(e, c);
            let mut before = dk[(step - 1) * n..][..n].to_vec();
            numbers.add_transposed(e, &mut before);
            e.copy_from_slice(&before);
        }
    });
    let mut total = Numbers::new(n, [None; 4])?;
    for part in parts {
        total.add(&part.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
    let dtype = ctx.input(0)?.dtype();
    let tensor = |values: Vec<T>, shape: &[usize]| -> Result<Option<Tensor>> {
        Ok(Some(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?))
    };
    let mut all = vec![tensor(dv, &[rank, n])?];
    let sums = [total.sub, total.diag, total.sup, total.corners.to_vec()];
    for ((given, sums), len) in given.iter().zip(sums).zip(lengths(n)) {
        all.push(if given.is_some() { tensor(sums, &[len])? } else { None });
    }
    Ok(all)
}

fn bands(inputs: Inputs<'_>) -> [Option<&Tensor>; 4] {
    [1, 2, 3, 4].map(|index| hook::given(inputs, index))
}

impl Op for Krylov {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let v = required(NAME, inputs, 0, "v")?;
        check_float(NAME, "v", v)?;
        let &[rank, n] = v.dims() else {
            return Err(Error::shape(NAME, "v", v.shape(), "[rank, n]"));
        };
        if rank == 0 || n < 2 {
            let expected = "[rank, n], rank at least 1, n at least 2";
            return Err(Error::shape(NAME, "v", v.shape(), expected));
        }
        for ((band, name), len) in bands(inputs).into_iter().zip(BANDS).zip(lengths(n)) {
            if let Some(band) = band {
                check_dtype(NAME, (name, band), ("v", v))?;
                check_shape(NAME, name, band, &[len])?;
            }
        }
        Ok(vec![Meta::new([rank, n, n], v.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2, 3, 4]).and_outputs(&[0])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let wide = working(outputs[0].dtype());
        let mut k = Tensor::empty(outputs[0].shape(), wide, &Device::Cpu)?;
        match wide {
            DType::F64 => forward::<f64>(inputs, &mut k)?,
            _ => forward::<f32>(inputs, &mut k)?,
        }
        store(&k, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dk) = &ctx.grads[0] else { return Ok(vec![None; 5]) };
        match working(dk.dtype()) {
            DType::F64 => backward::<f64>(ctx, dk),
            _ => backward::<f32>(ctx, dk),
        }
    }
}

fn call(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let bands = Bands {
        sub: args.optional("sub"),
        diag: args.optional("diag"),
        sup: args.optional("sup"),
        corners: args.optional("corners"),
    };
    listed(krylov(args.input("v")?, bands)?)
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: NAME,
        summary: "powers of a tridiagonal operator with corners on vectors",
        inputs: &[
            Arg::float("v", "rank n"),
            Arg::float("sub", "n-1").optional(),
            Arg::float("diag", "n").optional(),
            Arg::float("sup", "n-1").optional(),
            Arg::float("corners", "2").optional(),
        ],
        attributes: &[],
        outputs: &["K"],
        call,
    },
    OpSpec {
        name: "stein",
        summary: "M with M - A M B^T = D for subdiagonal operators A and B",
        inputs: &[
            Arg::float("D", "rows cols"),
            Arg::float("a", "rows-1"),
            Arg::float("b", "cols-1"),
        ],
        attributes: &[],
        outputs: &["M"],
        call: |args| listed(stein(args.input("D")?, args.input("a")?, args.input("b")?)?),
    },
];

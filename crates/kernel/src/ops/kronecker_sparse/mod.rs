//! Products of Kronecker-sparse factors: butterfly and Monarch matrices, and everything between.
//!
//! A factor of pattern (a, b, c, d) is a matrix with the support of `I_a (x) ones(b, c) (x) I_d`
//! ([`Pattern`]), stored as its dense blocks, `[a d, b, c]`. The operator multiplies the rows of x
//! by a product of such factors, `y = x (W_last ... W_first)^T`:
//!
//! | matrix | factors in the order they are applied |
//! | --- | --- |
//! | butterfly of n points (Dao et al., ICML 2019) | `(n / 2s, 2, 2, s)`, s = 1, 2, .., n/2 or the reverse |
//! | Monarch (Dao et al., ICML 2022) | `(k, q, p, 1)`, then `(1, s, r, l)` with `l r = k q` |
//! | block-diagonal | `(blocks, out, in, 1)` |
//!
//! The canonical layouts of the field are this one: a twiddle `[pairs, 2, 2]`, w1 `[k, q, p]` and
//! w2 `[l, s, r]`. A transposed factor is a flag ([`Step`]): blocks are read with exchanged
//! strides.
//!
//! # Method
//! Runs of factors with small blocks go through tiles of rows that stay in cache (`tiles.rs`),
//! those with large ones are grouped matrix products (`grouped.rs`). f64 with small blocks and
//! complex numbers take the reference. A row's bits depend on that row alone (the *invariant*
//! level): the choice is made by the patterns.
//!
//! Backward recomputes what lies between the factors from x, so nothing but the inputs is saved.
//! Gradients of complex numbers are conjugate: `dx = W^H dy`, `dW = dy x^H`.
//!
//! # Precision
//! bf16: small blocks compute and keep all vectors between factors in f32; large ones store them in
//! bf16 between factors, as a sequence of linear layers does. Values beside a bf16 x may be f32
//! masters, whose gradients are f32.

mod grouped;
mod pattern;
mod radix;
pub mod reference;
mod spec;
pub mod tiles;

#[cfg(test)]
mod tests;

pub use pattern::{Blocks, Pattern, Step};
pub use spec::{SPECS, butterfly, butterfly_steps, monarch, twiddle_shape};

use crate::hook::{self, dense, dense_as, required};
use danaus_tensor::{
    Backward, DType, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use half::bf16;
use num_complex::Complex;
use reference::Scalar;

/// Name on the tape and in messages.
const NAME: &str = "kronecker_sparse";

/// Numbers of a block from which it is worth a matrix product of its own.
const GROUPED: usize = 64;

/// A factor: its pattern and its values, `[a d, b, c]` in any shape of so many elements.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The pattern of the values as they are stored.
    pub pattern: Pattern,
    /// The blocks.
    pub values: &'a Tensor,
    /// Whether the factor's transpose is meant.
    pub transposed: bool,
}

/// `x (W_last ... W_first)^T` for factors in the order they are applied: `[.., cols]` to `[..,
/// rows]`.
///
/// # Errors
/// When factors do not follow each other, values are missing, or dtypes differ (x in f64, f32,
/// bf16, c64 or c128; values in the same, or f32 beside a bf16 x).
pub fn kronecker_sparse(x: &Tensor, factors: &[Factor]) -> Result<Tensor> {
    let step = |(source, factor): (usize, &Factor)| Step {
        transposed: factor.transposed,
        ..Step::new(factor.pattern, source)
    };
    let steps: Vec<Step> = factors.iter().enumerate().map(step).collect();
    let sources: Vec<&Tensor> = factors.iter().map(|factor| factor.values).collect();
    packed(x, &steps, &sources)
}

/// As [`kronecker_sparse`], with factors that may share tensors.
///
/// # Errors
/// As there.
pub fn packed(x: &Tensor, steps: &[Step], sources: &[&Tensor]) -> Result<Tensor> {
    let mut y = x.clone();
    let mut rest = steps;
    check(&y, steps, sources)?;
    while let Some(first) = rest.first() {
        let grouped = is_grouped(first);
        let count = rest.iter().take_while(|step| is_grouped(step) == grouped).count();
        // The tape keeps 32 inputs of an operator, one of which is x.
        let count = if sources.len() < 32 { count } else { count.min(31) };
        let (run, tail) = rest.split_at(count);
        y = one_run(&y, run, sources, grouped)?;
        rest = tail;
    }
    Ok(y)
}

fn is_grouped(step: &Step) -> bool {
    step.pattern.b * step.pattern.c >= GROUPED
}

/// A run with the sources that it uses.
fn one_run(x: &Tensor, run: &[Step], sources: &[&Tensor], grouped: bool) -> Result<Tensor> {
    let mut used: Vec<usize> = run.iter().map(|step| step.source).collect();
    used.sort_unstable();
    used.dedup();
    let place = |source: usize| used.binary_search(&source).unwrap_or_default();
    let steps = run.iter().map(|step| Step { source: place(step.source), ..*step }).collect();
    let mut inputs = vec![Some(x)];
    inputs.extend(used.iter().map(|&source| Some(sources[source])));
    hook::first(apply(KroneckerSparse { steps, grouped }, &inputs)?)
}

/// Refuses steps that do not fit x, each other or their sources.
fn check(x: &Tensor, steps: &[Step], sources: &[&Tensor]) -> Result<()> {
    let known = [DType::F64, DType::F32, DType::BF16, DType::C64, DType::C128];
    if !known.contains(&x.dtype()) {
        return Err(Error::dtype(NAME, "x", x.dtype(), "f64, f32, bf16, c64 or c128"));
    }
    let mut features = hook::last_dim(NAME, "x", x)?;
    for (index, step) in steps.iter().enumerate() {
        step.pattern.check(NAME)?;
        if step.cols() != features {
            let pattern = step.pattern;
            let valid = format!("one with {features} columns, to follow what is before it");
            return Err(Error::argument(NAME, format!("pattern {index}"), pattern, valid));
        }
        features = step.rows();
        let Some(values) = sources.get(step.source) else {
            let valid = format!("0..{}", sources.len());
            return Err(Error::argument(NAME, "source", step.source, valid));
        };
        if step.range().end > values.elem_count() {
            let expected = format!("at least {} elements", step.range().end);
            return Err(Error::shape(NAME, "values", values.shape(), expected));
        }
        let master = x.dtype() == DType::BF16 && values.dtype() == DType::F32;
        if values.dtype() != x.dtype() && !master {
            let allowed = format!("{} as x", x.dtype());
            return Err(Error::dtype(NAME, "values", values.dtype(), allowed));
        }
    }
    Ok(())
}

/// Inputs: x and the sources. Factors all have small blocks, or all large ones.
struct KroneckerSparse {
    steps: Vec<Step>,
    grouped: bool,
}

impl KroneckerSparse {
    fn sources<'a>(inputs: Inputs<'a>) -> Result<Vec<&'a Tensor>> {
        (1..inputs.len()).map(|index| required(NAME, inputs, index, "values")).collect()
    }

    /// The sources in row-major order and in the dtype that the kernels take beside `x`.
    fn prepared(&self, x: DType, sources: &[&Tensor]) -> Result<Vec<Tensor>> {
        let dtype = if x == DType::BF16 && !self.grouped { DType::F32 } else { x };
        sources.iter().map(|source| dense_as(source, dtype)).collect()
    }

    fn reference<T: Scalar>(&self, x: &Tensor, sources: &[Tensor], y: &mut Tensor) -> Result<()> {
        let sources = slices::<T>(sources)?;
        reference::forward(&self.steps, &sources, x.as_slice()?, y.as_slice_mut()?);
        Ok(())
    }

    fn reference_backward<T: Scalar>(
        &self,
        (x, dy): (&Tensor, &Tensor),
        sources: &[Tensor],
        dx: &mut Tensor,
    ) -> Result<Vec<Tensor>> {
        let slices = slices::<T>(sources)?;
        let mut sums = zeros::<T>(&slices);
        let rows = (x.as_slice()?, dy.as_slice()?);
        reference::backward(&self.steps, &slices, rows, dx.as_slice_mut()?, &mut sums);
        tensors(sums)
    }

    fn grouped<T>(&self, x: &Tensor, sources: &[Tensor], y: &mut Tensor) -> Result<()>
    where
        T: danaus_tensor::gemm::GemmElement + danaus_tensor::Element,
    {
        let sources = slices::<T>(sources)?;
        grouped::forward(&self.steps, &sources, x.as_slice()?, y.as_slice_mut()?)
    }

    fn grouped_backward<T>(
        &self,
        (x, dy): (&Tensor, &Tensor),
        sources: &[Tensor],
        dx: &mut Tensor,
    ) -> Result<Vec<Tensor>>
    where
        T: danaus_tensor::gemm::GemmElement + danaus_tensor::Element,
        T: Into<<T as danaus_tensor::gemm::Output>::Acc>,
        <T as danaus_tensor::gemm::Output>::Acc: danaus_tensor::Element,
    {
        let slices = slices::<T>(sources)?;
        let mut sums = zeros(&slices);
        let rows = (x.as_slice()?, dy.as_slice()?);
        grouped::backward(&self.steps, &slices, rows, dx.as_slice_mut()?, &mut sums)?;
        tensors(sums)
    }

    /// Writes dx; gives the gradients of the sources, flat.
    fn gradients(
        &self,
        pair: (&Tensor, &Tensor),
        sources: &[Tensor],
        dx: &mut Tensor,
    ) -> Result<Vec<Tensor>> {
        match (pair.0.dtype(), self.grouped) {
            (DType::F32, true) => self.grouped_backward::<f32>(pair, sources, dx),
            (DType::F64, true) => self.grouped_backward::<f64>(pair, sources, dx),
            (DType::BF16, true) => self.grouped_backward::<bf16>(pair, sources, dx),
            (DType::F32, false) => self.tiles_backward::<f32>(pair, sources, dx),
            (DType::BF16, false) => self.tiles_backward::<bf16>(pair, sources, dx),
            (DType::F64, false) => self.reference_backward::<f64>(pair, sources, dx),
            (DType::C64, _) => self.reference_backward::<Complex<f32>>(pair, sources, dx),
            _ => self.reference_backward::<Complex<f64>>(pair, sources, dx),
        }
    }

    fn tiles<T>(&self, x: &Tensor, sources: &[Tensor], y: &mut Tensor) -> Result<()>
    where
        T: danaus_runtime::simd::Lane + danaus_tensor::Element,
    {
        let sources = slices::<f32>(sources)?;
        let product = tiles::Product { steps: &self.steps, sources: &sources };
        tiles::forward::<T>(product, x.as_slice()?, y.as_slice_mut()?);
        Ok(())
    }

    fn tiles_backward<T>(
        &self,
        (x, dy): (&Tensor, &Tensor),
        sources: &[Tensor],
        dx: &mut Tensor,
    ) -> Result<Vec<Tensor>>
    where
        T: danaus_runtime::simd::Lane + danaus_tensor::Element,
    {
        let slices = slices::<f32>(sources)?;
        let mut sums = zeros::<f32>(&slices);
        let product = tiles::Product { steps: &self.steps, sources: &slices };
        let rows = (x.as_slice()?, dy.as_slice()?);
        tiles::backward::<T>(product, rows, dx.as_slice_mut()?, &mut sums);
        tensors(sums)
    }
}

fn slices<T: danaus_tensor::Element>(sources: &[Tensor]) -> Result<Vec<&[T]>> {
    sources.iter().map(Tensor::as_slice).collect()
}

fn zeros<T: Copy + Default>(like: &[&[impl Copy]]) -> Vec<Vec<T>> {
    like.iter().map(|source| vec![T::default(); source.len()]).collect()
}

fn tensors<T: danaus_tensor::Element>(sums: Vec<Vec<T>>) -> Result<Vec<Tensor>> {
    let device = danaus_tensor::Device::Cpu;
    sums.into_iter()
        .map(|sum| {
            let len = sum.len();
            Tensor::from_vec(sum, [len], &device)
        })
        .collect()
}

impl Op for KroneckerSparse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(NAME, inputs, 0, "x")?;
        check(x, &self.steps, &Self::sources(inputs)?)?;
        let mut dims = x.dims().to_vec();
        if let (Some(last), Some(step)) = (dims.last_mut(), self.steps.last()) {
            *last = step.rows();
        }
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(NAME, inputs, 0, "x")?)?;
        let sources = self.prepared(x.dtype(), &Self::sources(inputs)?)?;
        let y = &mut outputs[0];
        match (x.dtype(), self.grouped) {
            (DType::F32, true) => self.grouped::<f32>(&x, &sources, y),
            (DType::F64, true) => self.grouped::<f64>(&x, &sources, y),
            (DType::BF16, true) => self.grouped::<bf16>(&x, &sources, y),
            (DType::F32, false) => self.tiles::<f32>(&x, &sources, y),
            (DType::BF16, false) => self.tiles::<bf16>(&x, &sources, y),
            (DType::F64, false) => self.reference::<f64>(&x, &sources, y),
            (DType::C64, _) => self.reference::<Complex<f32>>(&x, &sources, y),
            _ => self.reference::<Complex<f64>>(&x, &sources, y),
        }
    }

    fn saves(&self) -> Saves {
        // Up to 31 sources: everything that came in, nothing that went out.
        Saves::inputs(&[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25, 26, 27, 28, 29, 30, 31,
        ])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let x = dense(ctx.input(0)?)?;
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; ctx.inputs.len()]) };
        let given_sources: Vec<&Tensor> =
            (1..ctx.inputs.len()).map(|index| ctx.input(index)).collect::<Result<_>>()?;
        let sources = self.prepared(x.dtype(), &given_sources)?;
        let mut dx = hook::empty_like(&x)?;
        let sums = self.gradients((&x, &dense(dy)?), &sources, &mut dx)?;
        let mut all = vec![Some(dx)];
        for (sum, source) in sums.iter().zip(given_sources) {
            all.push(Some(sum.to_dtype(source.dtype())?.reshape(source.shape())?));
        }
        Ok(all)
    }
}

//! From a dense matrix to the parameters of a weight in a given format, all in closed form.
//!
//! | format | what is taken | error |
//! | --- | --- | --- |
//! | `lowrank(r)` | leading singular triples: the nearest matrix | exact |
//! | `monarch(b)` | leading singular triples of every slice: the nearest layer | exact |
//! | `butterfly` | rank-one splitting level by level ([`super::peel()`]), one stack after the other | measured |
//! | `pixelfly(..)` | blocks and leading singular triples of the rest, in turn | measured |
//! | `ldr(r)` | leading singular triples of `M - Z M Z^T` for the shift Z, best multiple | measured |
//!
//! Butterflies of members of the class, and matrices of displacement rank r for the shift, are found
//! exactly; of others these are good candidates, not the nearest ones, so their error is measured on
//! the product. Sizes that are no power of two are padded with zeros, as the weights pad vectors.
//! A Kaleidoscope matrix has no closed form.

use super::sparse::sparse_plus_low_rank;
use super::{Entries, peel, project_low_rank, project_monarch_layer};
use crate::StructuredMatrix;
use crate::structured::expression::twiddle_dims;
use crate::structured::{Format, LdrClass};
use danaus_tensor::{DType, Device, Error, ParamBuilder, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Formats that [`project`] knows, for messages.
const VALID: &str = "dense, lowrank(RANK), monarch(BLOCKS), butterfly, ldr(RANK), \
    pixelfly(BLOCK,SIZE,FACTORS,RANK): the others have no closed form";

/// A matrix in a format.
pub struct Projected {
    /// Its parameters in f64, by the names that the format has them under.
    pub tensors: BTreeMap<String, Tensor>,
    /// Frobenius norm of the difference, as a part of the norm of the matrix.
    pub relative_error: f64,
    format: Format,
    shape: [usize; 2],
}

impl Projected {
    fn new<const N: usize>(
        format: Format,
        shape: [usize; 2],
        relative_error: f64,
        tensors: [(&str, Tensor); N],
    ) -> Self {
        let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor)).into();
        Self { tensors, relative_error, format, shape }
    }

    /// The weight itself.
    ///
    /// # Errors
    /// An internal error when the parameters do not fit.
    pub fn matrix(&self) -> Result<Box<dyn StructuredMatrix>> {
        let source = Arc::new(self.tensors.clone());
        let params = ParamBuilder::load(source, DType::F64, Device::Cpu);
        self.format.build_table(&params, self.shape, 1.0)
    }

    /// All elements of the projected matrix, by its fast product.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn to_dense(&self) -> Result<Tensor> {
        self.matrix()?.apply_transpose(&Tensor::eye(self.shape[0], DType::F64, &Device::Cpu)?)
    }

    /// Measures the error, after the parameter `scaled` was multiplied with the best factor.
    fn measured(mut self, entries: &Entries, scaled: Option<&str>) -> Result<Self> {
        let dense = self.to_dense()?.to_vec::<f64>()?;
        let (mut norm, mut own, mut inner) = (0.0, 0.0, 0.0);
        for (a, b) in entries.values.iter().zip(&dense) {
            norm += a.re * a.re;
            own += b * b;
            inner += a.re * b;
        }
        let mut factor = 1.0;
        if let Some(tensor) =
            scaled.and_then(|name| self.tensors.get_mut(name)).filter(|_| own > 0.0)
        {
            factor = inner / own;
            *tensor = tensor.affine(factor, 0.0)?;
        }
        let difference = |(a, b): (&num_complex::Complex<f64>, &f64)| (a.re - factor * b).powi(2);
        let lost: f64 = entries.values.iter().zip(&dense).map(difference).sum();
        self.relative_error = if norm > 0.0 { (lost / norm).sqrt() } else { 0.0 };
        Ok(self)
    }
}

/// A real matrix in a format: the nearest one, or for butterflies and low displacement rank what the
/// closed form gives.
///
/// # Errors
/// When the matrix is none, complex or not finite, the format has no closed form, or its number does
/// not fit the size.
pub fn project(matrix: &Tensor, format: Format) -> Result<Projected> {
    let (entries, shape) = real(matrix)?;
    let make = |error: f64, tensors| Projected::new(format, shape, error, tensors);
    Ok(match format {
        Format::Dense => {
            let tensor = matrix.to_dtype(DType::F64)?;
            Projected::new(format, shape, 0.0, [("weight", tensor)])
        }
        Format::LowRank(rank) => {
            let found = project_low_rank(matrix, rank)?;
            make(found.relative_error(), [("u", found.u), ("v", found.v)])
        }
        Format::Monarch(blocks) => {
            let found = project_monarch_layer(matrix, blocks)?;
            make(found.relative_error(), [("w1", found.w1), ("w2", found.w2)])
        }
        Format::Butterfly => {
            let twiddle = butterflies(&entries)?;
            Projected::new(format, shape, 0.0, [("twiddle", twiddle)]).measured(&entries, None)?
        }
        Format::Ldr(LdrClass::Subdiagonal, rank) => {
            let found = displacement(&entries, rank)?;
            Projected::new(format, shape, 0.0, found).measured(&entries, Some("g"))?
        }
        Format::Pixelfly(sizes) => {
            let found = sparse_plus_low_rank(&entries, sizes)?;
            Projected::new(format, shape, 0.0, found).measured(&entries, None)?
        }
        Format::Kaleidoscope | Format::Ldr(..) => {
            return Err(Error::argument("project", "format", String::from(format), VALID));
        }
    })
}

/// The relative error of [`project`] for several formats; those of all ranks come from one
/// decomposition.
///
/// # Errors
/// As [`project`].
pub fn errors(matrix: &Tensor, formats: &[Format]) -> Result<Vec<f64>> {
    let rank = |format: &Format| match format {
        Format::LowRank(rank) => Some(*rank),
        _ => None,
    };
    let Some(most) = formats.iter().filter_map(rank).max() else {
        return formats.iter().map(|&format| Ok(project(matrix, format)?.relative_error)).collect();
    };
    real(matrix)?;
    let found = project_low_rank(matrix, most)?;
    // A column of u has the root of its singular value in it.
    let squares = found.u.mul(&found.u)?.sum(0)?.to_vec::<f64>()?;
    let of_rank = |rank: usize| {
        let left_out: f64 = squares[rank..].iter().map(|value| value * value).sum();
        let error = (left_out + found.error * found.error).sqrt();
        if found.norm > 0.0 { error / found.norm } else { 0.0 }
    };
    let each = |format: &Format| match rank(format) {
        Some(rank) => Ok(of_rank(rank)),
        None => Ok(project(matrix, *format)?.relative_error),
    };
    formats.iter().map(each).collect()
}

fn real(matrix: &Tensor) -> Result<(Entries, [usize; 2])> {
    if matrix.dtype().is_complex() {
        return Err(Error::dtype("project", "matrix", matrix.dtype(), "real numbers"));
    }
    let entries = Entries::of("project", matrix)?;
    let shape = [entries.rows, entries.cols];
    if shape.contains(&0) {
        return Err(Error::shape("project", "matrix", matrix.shape(), "at least one element"));
    }
    Ok((entries, shape))
}

/// `size x size` elements from row `first` on, zeros outside.
fn square(entries: &Entries, first: usize, size: usize) -> Vec<f64> {
    let mut values = vec![0.0; size * size];
    for (row, to) in (first..entries.rows).zip(values.chunks_exact_mut(size)) {
        let from = &entries.values[row * entries.cols..][..entries.cols];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.re);
    }
    values
}

/// The twiddle of a butterfly layer.
fn butterflies(entries: &Entries) -> Result<Tensor> {
    let dims = twiddle_dims(1, [entries.rows, entries.cols]);
    let n = 1usize << dims[2];
    let stack = |index: usize| -> Result<Tensor> {
        let values = square(entries, index * n, n);
        let matrix = Tensor::from_vec(values, [n, n], &Device::Cpu)?;
        peel(&matrix, true)?.twiddle.tensor()
    };
    let stacks = (0..dims[0]).map(stack).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&stacks.iter().collect::<Vec<_>>(), 0)
}

/// Generators of the matrix of displacement rank `rank` for the shift whose displacement is nearest.
fn displacement(entries: &Entries, rank: usize) -> Result<[(&'static str, Tensor); 4]> {
    let n = entries.rows.max(entries.cols).max(2);
    let mut values = square(entries, 0, n);
    for at in (n..n * n).rev().filter(|at| at % n > 0) {
        values[at] -= values[at - n - 1];
    }
    let found = project_low_rank(&Tensor::from_vec(values, [n, n], &Device::Cpu)?, rank)?;
    let ones = Tensor::full(1.0f64, [n - 1], &Device::Cpu)?.to_dtype(DType::F64)?;
    let g = found.u.transpose(0, 1)?.contiguous()?;
    Ok([("subd_a", ones.clone()), ("subd_b", ones), ("g", g), ("h", found.v)])
}

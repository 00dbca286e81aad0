//! Reading and writing at indices.
//!
//! A tensor is seen as `outer x size x inner`, and indices address `size`. They are of any integer
//! dtype; one that is negative or too large is an error with its value and place. Writes happen in the
//! order of the indices, each column by one task, so that repeated indices give the same bits on any
//! number of threads; sums of bf16 and f16 are kept in f32.

pub(crate) mod cuda;

use super::copy::{contiguous_into, match_size, write_start};
use super::elementwise::start;
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Shape, Tensor, apply,
};
use danaus_runtime::threads::{self, SharedMut};
use num_complex::Complex;

/// Elements worth a task.
const GRAIN: usize = 1 << 14;
/// Columns that a task writes at least.
const BAND: usize = 64;

/// A shape split at a dimension.
#[derive(Clone, Copy)]
struct Split {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Split {
    fn of(dims: &[usize], dim: usize) -> Self {
        let product = |dims: &[usize]| dims.iter().product();
        Self { outer: product(&dims[..dim]), size: dims[dim], inner: product(&dims[dim + 1..]) }
    }
}

/// The indices as contiguous i64, all inside `0..size`.
fn checked(op: &'static str, index: &Tensor, size: usize) -> Result<Tensor> {
    let wide = index.detach().to_dtype(DType::I64)?.contiguous()?;
    if wide.device().is_cuda() {
        // Kernels check what they read; here nothing is read, and nobody waits.
        return Ok(wide);
    }
    let outside = |&value: &i64| usize::try_from(value).map_or(true, |value| value >= size);
    if let Some(place) = wide.as_slice::<i64>()?.iter().position(outside) {
        let given = format!("{} at position {place}", wide.as_slice::<i64>()?[place]);
        let valid = format!("0..{size}, the size of the indexed dimension");
        return Err(Error::argument(op, "index", given, valid));
    }
    Ok(wide)
}

fn check_index_dtype(op: &'static str, index: &Tensor) -> Result<()> {
    if index.dtype().is_int() {
        return Ok(());
    }
    Err(Error::dtype(op, "index", index.dtype(), "i64, i32, u32, i8 or u8"))
}

fn zeros_like(shape: &Shape, grad: &Tensor) -> Result<Tensor> {
    Tensor::zeros(shape, grad.dtype(), &grad.device())
}

/// `y[o, m, i] = x[o, index[o, m, i], i]`.
struct Gather {
    dim: usize,
    shape: Shape,
}

/// Whether `index` has `x`'s shape except along `dim`.
fn check_aligned(op: &'static str, x: &Tensor, index: &Tensor, dim: usize) -> Result<()> {
    check_index_dtype(op, index)?;
    let fits = index.rank() == x.rank()
        && (0..x.rank()).all(|axis| axis == dim || index.dims()[axis] == x.dims()[axis]);
    if fits {
        return Ok(());
    }
    let expected = format!("{} except in dimension {dim}", x.shape());
    Err(Error::shape(op, "index", index.shape(), expected))
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required("gather", inputs, 0)?;
        let index = super::required("gather", inputs, 1)?;
        check_aligned("gather", x, index, self.dim)?;
        Ok(vec![Meta::new(index.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required("gather", inputs, 0)?.detach().contiguous()?;
        let index = super::required("gather", inputs, 1)?;
        let split = Split::of(x.dims(), self.dim);
        let count = index.dims()[self.dim];
        if x.device().is_cuda() {
            return cuda::gather(split, count, &x, index, &mut outputs[0]);
        }
        let index = checked("gather", index, split.size)?;
        let index = index.as_slice::<i64>()?;
        let to = write_start(&mut outputs[0])?;
        match_size!(x.dtype().size(), E => {
            // SAFETY: x is contiguous, the output fresh and of the index's shape.
            let (from, to) = unsafe {
                (
                    std::slice::from_raw_parts(start(&x).cast::<E>(), x.elem_count()),
                    std::slice::from_raw_parts_mut(to.cast::<E>(), index.len()),
                )
            };
            gather(split, count, from, index, to);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let zeros = zeros_like(&self.shape, grad)?;
        Ok(vec![Some(zeros.scatter_add(self.dim as isize, ctx.input(1)?, grad)?), None])
    }
}

fn gather<E: Copy + Send + Sync>(
    split: Split,
    count: usize,
    from: &[E],
    index: &[i64],
    to: &mut [E],
) {
    let Split { size, inner, .. } = split;
    let len = to.len();
    let shared = SharedMut::new(to);
    let (tasks, per_task) = threads::split(len, GRAIN);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        // SAFETY: tasks cover disjoint ranges.
        let part = unsafe { shared.slice(start, per_task.min(len.saturating_sub(start))) };
        for (at, value) in (start..).zip(part) {
            let outer = at / (count * inner);
            *value = from[(outer * size + index[at] as usize) * inner + at % inner];
        }
    });
}

/// `y = x`, then `y[o, index[o, m, i], i] = src[o, m, i]` (or `+=`), in the order of m.
struct Scatter {
    dim: usize,
    add: bool,
}

impl Op for Scatter {
    fn name(&self) -> &'static str {
        if self.add { "scatter_add" } else { "scatter" }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        let index = super::required(self.name(), inputs, 1)?;
        let src = super::required(self.name(), inputs, 2)?;
        check_aligned(self.name(), x, index, self.dim)?;
        check_source(self.name(), x, src, index.shape())?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?;
        let index = super::required(self.name(), inputs, 1)?;
        let src = super::required(self.name(), inputs, 2)?;
        let split = Split::of(x.dims(), self.dim);
        let count = index.dims()[self.dim];
        if x.device().is_cuda() {
            let how = (split, count, self.add);
            return cuda::scatter(how, x, index, src, &mut outputs[0]);
        }
        let index = checked(self.name(), index, split.size)?;
        let index = index.as_slice::<i64>()?;
        let place = |outer: usize, m: usize, i: usize| {
            index[(outer * count + m) * split.inner + i] as usize
        };
        write(self.name(), Write { split, count, add: self.add }, place, x, src, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let (dim, index) = (self.dim as isize, ctx.input(1)?);
        let at_index = grad.gather(dim, index)?;
        if self.add {
            return Ok(vec![Some(grad.clone()), None, Some(at_index)]);
        }
        // Of several values for one place only the last one arrived.
        let mut shape = vec![1; index.rank()];
        shape[self.dim] = index.dims()[self.dim];
        let order = Tensor::arange(shape[self.dim], &index.device())?.reshape(shape)?;
        let order = order.broadcast_to(index.shape())?;
        let winners = Tensor::zeros(grad.shape(), DType::I64, &grad.device())?;
        let arrived = winners.scatter(dim, index, &order)?.gather(dim, index)?.eq(&order)?;
        let zeros = zeros_like(index.shape(), grad)?;
        let dsrc = arrived.where_cond(&at_index, &zeros)?;
        Ok(vec![Some(grad.scatter(dim, index, &zeros)?), None, Some(dsrc)])
    }
}

fn check_source(op: &'static str, x: &Tensor, src: &Tensor, shape: &Shape) -> Result<()> {
    if src.dtype() != x.dtype() {
        return Err(Error::dtype(op, "src", src.dtype(), x.dtype().name()));
    }
    if src.shape() != shape {
        return Err(Error::shape(op, "src", src.shape(), format!("{shape}")));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Write {
    split: Split,
    count: usize,
    add: bool,
}

/// Copies `x` to `out` and writes `src` over it where `place(outer, m, inner)` says.
fn write(
    op: &'static str,
    shape: Write,
    place: impl Fn(usize, usize, usize) -> usize + Sync + Send,
    x: &Tensor,
    src: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    if !shape.add {
        contiguous_into(x, out)?;
        let src = src.detach().contiguous()?;
        let to = write_start(out)?;
        match_size!(x.dtype().size(), E => {
            // SAFETY: both are contiguous; the output is fresh.
            let (from, to) = unsafe {
                (
                    std::slice::from_raw_parts(start(&src).cast::<E>(), src.elem_count()),
                    std::slice::from_raw_parts_mut(to.cast::<E>(), x.elem_count()),
                )
            };
            columns(shape, place, from, to, |to, value| *to = value);
        });
        return Ok(());
    }
    match x.dtype() {
        DType::BF16 | DType::F16 => {
            let (x, src) = (x.detach().to_dtype(DType::F32)?, src.detach().to_dtype(DType::F32)?);
            let mut wide = Tensor::empty(x.shape(), DType::F32, &x.device())?;
            add_as::<f32>(shape, place, &x, &src, &mut wide)?;
            contiguous_into(&wide.to_dtype(out.dtype())?, out)
        }
        DType::F64 => add_as::<f64>(shape, place, x, src, out),
        DType::F32 => add_as::<f32>(shape, place, x, src, out),
        DType::I64 => add_as::<i64>(shape, place, x, src, out),
        DType::I32 => add_as::<i32>(shape, place, x, src, out),
        DType::C64 => add_as::<Complex<f32>>(shape, place, x, src, out),
        DType::C128 => add_as::<Complex<f64>>(shape, place, x, src, out),
        other => Err(Error::dtype(op, "x", other, "f64, f32, bf16, f16, i64, i32, c64 or c128")),
    }
}

fn add_as<T: Element + std::ops::Add<Output = T>>(
    shape: Write,
    place: impl Fn(usize, usize, usize) -> usize + Sync + Send,
    x: &Tensor,
    src: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    contiguous_into(x, out)?;
    let src = src.detach().contiguous()?;
    let add = |to: &mut T, value: T| *to = *to + value;
    columns(shape, place, src.as_slice::<T>()?, out.as_slice_mut::<T>()?, add);
    Ok(())
}

/// Every task owns some columns and walks through all indices in order.
fn columns<E: Copy + Send + Sync>(
    shape: Write,
    place: impl Fn(usize, usize, usize) -> usize + Sync + Send,
    from: &[E],
    to: &mut [E],
    put: impl Fn(&mut E, E) + Sync + Send,
) {
    let Write { split: Split { outer, size, inner }, count, .. } = shape;
    let band = GRAIN.div_ceil(count.max(1)).max(BAND);
    let bands = inner.div_ceil(band);
    let shared = SharedMut::new(to);
    let units = outer * bands;
    let (tasks, per_task) =
        threads::split(units, GRAIN.div_ceil(count.max(1) * inner.clamp(1, band)));
    threads::for_each(tasks, |task| {
        for unit in task * per_task..((task + 1) * per_task).min(units) {
            let (row, first) = (unit / bands, unit % bands * band);
            let width = band.min(inner - first);
            for m in 0..count {
                let values = &from[(row * count + m) * inner + first..][..width];
                for (offset, &value) in values.iter().enumerate() {
                    let column = first + offset;
                    let target = (row * size + place(row, m, column)) * inner + column;
                    // SAFETY: the column belongs to this unit and the index was checked.
                    put(unsafe { &mut shared.slice(target, 1)[0] }, value);
                }
            }
        }
    });
}

/// `y[o, n, i] = x[o, index[n], i]`.
struct IndexSelect {
    dim: usize,
    shape: Shape,
}

fn check_list(op: &'static str, index: &Tensor) -> Result<usize> {
    check_index_dtype(op, index)?;
    match index.dims() {
        [count] => Ok(*count),
        _ => Err(Error::shape(op, "index", index.shape(), "one dimension")),
    }
}

impl Op for IndexSelect {
    fn name(&self) -> &'static str {
        "index_select"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        let mut dims = x.dims().to_vec();
        dims[self.dim] = check_list(self.name(), super::required(self.name(), inputs, 1)?)?;
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?.detach().contiguous()?;
        let index = super::required(self.name(), inputs, 1)?;
        let split = Split::of(x.dims(), self.dim);
        if x.device().is_cuda() {
            return cuda::select(split, &x, index, &mut outputs[0]);
        }
        let Split { outer, size, inner } = split;
        let index = checked(self.name(), index, size)?;
        let index = index.as_slice::<i64>()?;
        let width = inner * x.dtype().size();
        let to = SharedMut::from_ptr(write_start(&mut outputs[0])?);
        // SAFETY: x is contiguous.
        let from = unsafe { std::slice::from_raw_parts(start(&x), x.bytes()) };
        let rows = outer * index.len();
        let (tasks, per_task) = threads::split(rows, GRAIN.div_ceil(inner.max(1)));
        threads::for_each(tasks, |task| {
            for row in task * per_task..((task + 1) * per_task).min(rows) {
                let source = row / index.len() * size + index[row % index.len()] as usize;
                // SAFETY: rows of the output are written once.
                let target = unsafe { to.slice(row * width, width) };
                target.copy_from_slice(&from[source * width..(source + 1) * width]);
            }
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let zeros = zeros_like(&self.shape, grad)?;
        Ok(vec![Some(zeros.index_add(self.dim as isize, ctx.input(1)?, grad)?), None])
    }
}

/// Picks positions along `dim` by the indices, of any shape and in row-major order, into a fresh tensor
/// of that many positions. For operators that are a lookup inside.
///
/// # Errors
/// When the index is not of an integer dtype, or one is outside (on a GPU: at the next wait).
pub fn index_select_into(x: &Tensor, dim: usize, index: &Tensor, out: &mut Tensor) -> Result<()> {
    check_index_dtype("index_select", index)?;
    let list = index.detach().reshape([index.elem_count()])?;
    let op = IndexSelect { dim, shape: x.shape().clone() };
    op.run(&[Some(x), Some(&list)], std::slice::from_mut(out))
}

/// `y = x`, then `y[o, index[n], i] += src[o, n, i]`.
struct IndexAdd {
    dim: usize,
}

impl Op for IndexAdd {
    fn name(&self) -> &'static str {
        "index_add"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        let mut dims = x.dims().to_vec();
        dims[self.dim] = check_list(self.name(), super::required(self.name(), inputs, 1)?)?;
        check_source(self.name(), x, super::required(self.name(), inputs, 2)?, &dims.into())?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?;
        let index = super::required(self.name(), inputs, 1)?;
        let src = super::required(self.name(), inputs, 2)?;
        let split = Split::of(x.dims(), self.dim);
        if x.device().is_cuda() {
            return cuda::index_add(split, x, index, src, &mut outputs[0]);
        }
        let index = checked(self.name(), index, split.size)?;
        let index = index.as_slice::<i64>()?;
        let shape = Write { split, count: index.len(), add: true };
        write(self.name(), shape, |_, n, _| index[n] as usize, x, src, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let dsrc = grad.index_select(self.dim as isize, ctx.input(1)?)?;
        Ok(vec![Some(grad.clone()), None, Some(dsrc)])
    }
}

impl Tensor {
    /// Elements picked along a dimension: `y[.., m, ..] = x[.., index[.., m, ..], ..]`. The index has
    /// this tensor's shape except along `dim`.
    ///
    /// # Errors
    /// When an index is outside, or shape or dtype of the index do not fit.
    pub fn gather(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.layout().dim("gather", dim)?;
        let op = Gather { dim, shape: self.shape().clone() };
        super::single(apply(op, &[Some(self), Some(index)])?)
    }

    /// A copy with `src` written at indices along a dimension; the last of several values for one
    /// place stays.
    ///
    /// # Errors
    /// When an index is outside, or shapes or dtypes do not fit.
    pub fn scatter(&self, dim: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let dim = self.layout().dim("scatter", dim)?;
        let inputs = [Some(self), Some(index), Some(src)];
        super::single(apply(Scatter { dim, add: false }, &inputs)?)
    }

    /// A copy with `src` added at indices along a dimension.
    ///
    /// # Errors
    /// When an index is outside, or shapes or dtypes do not fit.
    pub fn scatter_add(&self, dim: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let dim = self.layout().dim("scatter_add", dim)?;
        let inputs = [Some(self), Some(index), Some(src)];
        super::single(apply(Scatter { dim, add: true }, &inputs)?)
    }

    /// Positions picked along a dimension by a list of indices (rows of a table for `dim` 0).
    ///
    /// # Errors
    /// When an index is outside or the index is no list of integers.
    pub fn index_select(&self, dim: isize, index: &Tensor) -> Result<Tensor> {
        let dim = self.layout().dim("index_select", dim)?;
        let op = IndexSelect { dim, shape: self.shape().clone() };
        super::single(apply(op, &[Some(self), Some(index)])?)
    }

    /// A copy with `src` added at a list of positions along a dimension.
    ///
    /// # Errors
    /// When an index is outside, or shapes or dtypes do not fit.
    pub fn index_add(&self, dim: isize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
        let dim = self.layout().dim("index_add", dim)?;
        super::single(apply(IndexAdd { dim }, &[Some(self), Some(index), Some(src)])?)
    }

    /// For every index a vector of `classes` numbers: 1 at the index, else 0.
    ///
    /// # Errors
    /// When an index is not in `0..classes` or no integer.
    pub fn one_hot(&self, classes: usize, dtype: DType) -> Result<Tensor> {
        check_index_dtype("one_hot", self)?;
        let index = checked("one_hot", self, classes)?.unsqueeze(-1)?;
        index.eq(&Tensor::arange(classes, &self.device())?)?.to_dtype(dtype)
    }
}

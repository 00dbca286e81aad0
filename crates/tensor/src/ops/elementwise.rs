//! Applies a compiled formula to tensors, block by block.
//!
//! Inputs are stretched by strides, never materialised. The output is row-major; it is cut into
//! tasks by its size alone, and a task works through blocks of [`BLOCK`] elements: inputs that lie
//! contiguously in the computing type are read in place, values that are constant within a block are
//! passed as one value, and everything else (other element types, odd strides) is first copied to a
//! block of scratch. Formulas run in f64 for f64 tensors and in f32 for all others.

pub(crate) mod cuda;
mod generate;

use super::expr::{Expr, Operand, Program, Real, Registers};
use crate::{DType, Element, Error, Result, Shape, Tensor, match_dtype, ops::cast::Number};
use danaus_runtime::simd::{Kernel, Lane, Portable, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements of a block: a handful of f32 blocks stay in the first-level cache.
pub(crate) const BLOCK: usize = 512;

/// Fewest elements that are worth a task.
const GRAIN: usize = 1 << 14;

/// Computes `program` of `inputs`, each stretched to the outputs' shape. An input that the program
/// does not read may be absent. Outputs are fresh; their dtype is a float type or bool.
pub(crate) fn evaluate(
    program: &Program,
    inputs: &[Option<&Tensor>],
    outputs: &mut [Tensor],
) -> Result<()> {
    let Some(first) = outputs.first() else { return Ok(()) };
    if first.device().is_cuda() {
        return cuda::evaluate(program, inputs, outputs);
    }
    let shape = first.shape().clone();
    let is_f64 = |tensor: &Tensor| tensor.dtype() == DType::F64;
    if outputs.iter().any(is_f64) || inputs.iter().flatten().any(|tensor| is_f64(tensor)) {
        evaluate_as::<f64>(program, inputs, outputs, &shape)
    } else {
        evaluate_as::<f32>(program, inputs, outputs, &shape)
    }
}

/// Computes formulas of `inputs` into fresh tensors, on whatever device they are; input `xi` is
/// `inputs[i]`, stretched to the outputs' shape. For operators that are formulas inside.
///
/// # Errors
/// When a dtype is not a float or bool, shapes do not stretch, or memory is missing.
pub fn evaluate_into(exprs: &[Expr], inputs: &[&Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|tensor| Some(*tensor)).collect();
    evaluate(&Program::new(exprs), &inputs, outputs)
}

fn evaluate_as<T: Compute>(
    program: &Program,
    inputs: &[Option<&Tensor>],
    outputs: &mut [Tensor],
    shape: &Shape,
) -> Result<()> {
    let mut prepared = Vec::with_capacity(inputs.len());
    for (position, input) in inputs.iter().enumerate() {
        let tensor = input.filter(|_| program.reads(position)).map(unfold).transpose()?;
        prepared.push(tensor.map(|tensor| tensor.detach().broadcast_to(shape)).transpose()?);
    }
    let (dims, strides) = coalesce(shape, &prepared);
    let sources: Vec<Option<Source>> = prepared
        .iter()
        .zip(strides)
        .map(|(tensor, strides)| {
            tensor.as_ref().map(|tensor| Source {
                start: start(tensor),
                dtype: tensor.dtype(),
                strides,
            })
        })
        .collect();
    let sinks: Vec<Sink<T>> = outputs.iter_mut().map(Sink::new).collect::<Result<_>>()?;
    let len = shape.elem_count();
    let (tasks, per_task) = threads::split(len, GRAIN);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        let end = (start + per_task).min(len);
        let (dims, sources, sinks) = (&dims, &sources, &sinks);
        let task = Task { program, dims, sources, sinks, start, end };
        // f64 is for references: one build of it is enough.
        if T::DTYPE == DType::F64 { task.run(Portable) } else { dispatch(task) }
    });
    Ok(())
}

/// Large inputs whose innermost elements are far apart are copied first: the copy works in tiles.
fn unfold(tensor: &Tensor) -> Result<Tensor> {
    let inner = tensor.dims().iter().zip(tensor.strides()).rev().find(|(dim, _)| **dim != 1);
    let scattered = inner.is_some_and(|(_, &stride)| stride != 0 && stride != 1);
    let large = tensor.elem_count() > GRAIN;
    if scattered && large { tensor.detach().contiguous() } else { Ok(tensor.clone()) }
}

/// Where a tensor's first element is.
pub(super) fn start(tensor: &Tensor) -> *const u8 {
    match_dtype!(tensor.dtype(), T => {
        tensor.view::<T>().map_or(std::ptr::null(), |view| view.ptr.cast())
    })
}

/// Merges neighbouring dimensions that all inputs walk through in one stride.
pub(super) fn coalesce(shape: &Shape, inputs: &[Option<Tensor>]) -> (Vec<usize>, Vec<Vec<isize>>) {
    let mut dims: Vec<usize> = Vec::new();
    let mut strides: Vec<Vec<isize>> = vec![Vec::new(); inputs.len()];
    for axis in (0..shape.len()).filter(|&axis| shape[axis] != 1) {
        let size = shape[axis];
        let stride = |tensor: &Option<Tensor>| tensor.as_ref().map_or(0, |t| t.strides()[axis]);
        let joins = !dims.is_empty()
            && inputs.iter().zip(&strides).all(|(tensor, outer)| {
                outer.last().is_some_and(|&outer| outer == stride(tensor) * size as isize)
            });
        if joins {
            if let Some(last) = dims.last_mut() {
                *last *= size;
            }
        } else {
            dims.push(size);
        }
        for (tensor, list) in inputs.iter().zip(&mut strides) {
            match list.last_mut() {
                Some(last) if joins => *last = stride(tensor),
                _ => list.push(stride(tensor)),
            }
        }
    }
    (dims, strides)
}

/// An input as it lies in memory.
struct Source {
    start: *const u8,
    dtype: DType,
    strides: Vec<isize>,
}

// SAFETY: tasks only read through the pointer, and the tensor outlives them.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

/// An output by element type.
enum Sink<T> {
    Direct(SharedMut<T>),
    Bf16(SharedMut<bf16>),
    F16(SharedMut<f16>),
    F32(SharedMut<f32>),
    Bool(SharedMut<bool>),
}

/// The types that formulas are computed in.
trait Compute: Real + Element + Number {
    /// Rounds a block to bf16.
    fn to_bf16<S: Simd>(s: S, from: &[Self], to: &mut [bf16]);
    /// Rounds a block to f16.
    fn to_f16(from: &[Self], to: &mut [f16]);
    /// Widens a block of f16.
    fn from_f16(from: &[f16], to: &mut [Self]);
    /// A value from f32 (exact).
    fn from_f32(value: f32) -> Self;
}

impl Compute for f32 {
    #[inline(always)]
    fn to_bf16<S: Simd>(s: S, from: &[f32], to: &mut [bf16]) {
        let whole = from.len() - from.len() % S::LANES;
        for start in (0..whole).step_by(S::LANES) {
            // SAFETY: both slices hold one vector from `start`.
            unsafe {
                let value = s.load(from.as_ptr().add(start));
                bf16::store(s, to.as_mut_ptr().add(start), value);
            }
        }
        for (to, &value) in to[whole..].iter_mut().zip(&from[whole..]) {
            *to = bf16::from_f32(value);
        }
    }
    fn to_f16(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
    fn from_f16(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Compute for f64 {
    #[inline(always)]
    fn to_bf16<S: Simd>(_: S, from: &[f64], to: &mut [bf16]) {
        for (to, &value) in to.iter_mut().zip(from) {
            *to = bf16::from_f64(value);
        }
    }
    fn to_f16(from: &[f64], to: &mut [f16]) {
        to.convert_from_f64_slice(from);
    }
    fn from_f16(from: &[f16], to: &mut [f64]) {
        from.convert_to_f64_slice(to);
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f64 {
        f64::from(value)
    }
}

impl<T: Compute> Sink<T> {
    fn new(tensor: &mut Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            dtype if dtype == T::DTYPE => Self::Direct(SharedMut::new(tensor.as_slice_mut()?)),
            DType::BF16 => Self::Bf16(SharedMut::new(tensor.as_slice_mut()?)),
            DType::F16 => Self::F16(SharedMut::new(tensor.as_slice_mut()?)),
            DType::F32 => Self::F32(SharedMut::new(tensor.as_slice_mut()?)),
            DType::Bool => Self::Bool(SharedMut::new(tensor.as_slice_mut()?)),
            other => return Err(Error::dtype("fused", "output", other, super::FLOATS_AND_BOOL)),
        })
    }

    /// Writes a block that is not of the output's own type.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, start: usize, block: &[T]) {
        match self {
            Self::Direct(_) => {}
            Self::Bf16(to) => {
                // SAFETY: `start..start + block.len()` belongs to this task alone.
                T::to_bf16(s, block, unsafe { to.slice(start, block.len()) });
            }
            Self::F16(to) => {
                // SAFETY: as above.
                T::to_f16(block, unsafe { to.slice(start, block.len()) });
            }
            Self::F32(to) => {
                // SAFETY: as above.
                let to = unsafe { to.slice(start, block.len()) };
                let narrow = |value: T| Number::to_f64(value) as f32;
                to.iter_mut().zip(block).for_each(|(to, value)| *to = narrow(*value));
            }
            Self::Bool(to) => {
                // SAFETY: as above.
                let to = unsafe { to.slice(start, block.len()) };
                to.iter_mut().zip(block).for_each(|(to, value)| *to = *value != T::zero());
            }
        }
    }
}

/// Elements `start..end` of the outputs.
struct Task<'a, T> {
    program: &'a Program,
    dims: &'a [usize],
    sources: &'a [Option<Source>],
    sinks: &'a [Sink<T>],
    start: usize,
    end: usize,
}

impl<T: Compute> Kernel for Task<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inner = self.dims.last().copied().unwrap_or(1).max(1);
        let mut registers = Registers::<T>::new(self.program, BLOCK);
        let mut loaded = vec![vec![T::default(); BLOCK]; self.sources.len()];
        let mut converted = vec![vec![T::default(); BLOCK]; self.sinks.len()];
        let mut at = self.start;
        while at < self.end {
            let mut len = BLOCK.min(self.end - at);
            // Long rows are not mixed in a block, so that they can be read in place.
            if self.dims.len() > 1 && inner >= BLOCK / 2 {
                len = len.min(inner - at % inner);
            }
            let mut operands = Vec::with_capacity(self.sources.len());
            for (source, scratch) in self.sources.iter().zip(&mut loaded) {
                operands.push(match source {
                    Some(source) => source.load(self.dims, at, &mut scratch[..len]),
                    None => Operand::Scalar(T::zero()),
                });
            }
            let mut outputs: Vec<&mut [T]> = Vec::with_capacity(self.sinks.len());
            for (sink, scratch) in self.sinks.iter().zip(&mut converted) {
                outputs.push(match sink {
                    // SAFETY: tasks cover disjoint ranges of the output.
                    Sink::Direct(to) => unsafe { to.slice(at, len) },
                    _ => &mut scratch[..len],
                });
            }
            self.program.run(s, &operands, &mut registers, &mut outputs);
            for (sink, block) in self.sinks.iter().zip(&converted) {
                sink.store(s, at, &block[..len]);
            }
            at += len;
        }
    }
}

impl Source {
    /// Elements `at..at + scratch.len()` of the stretched input.
    #[inline(always)]
    fn load<'a, T: Compute>(
        &'a self,
        dims: &[usize],
        at: usize,
        scratch: &'a mut [T],
    ) -> Operand<'a, T> {
        let Some((&inner, outer)) = dims.split_last() else {
            // SAFETY: a scalar has one element.
            unsafe { self.fill(0, 0, &mut scratch[..1]) };
            return Operand::Scalar(scratch[0]);
        };
        let (mut row, mut column) = (at / inner, at % inner);
        let stride = self.strides[outer.len()];
        let len = scratch.len();
        if column + len <= inner {
            let position = self.row_start(outer, row) + column as isize * stride;
            if stride == 0 {
                // SAFETY: the element is one of the tensor's.
                unsafe { self.fill(position, 0, &mut scratch[..1]) };
                return Operand::Scalar(scratch[0]);
            }
            if stride == 1 && self.dtype == T::DTYPE {
                // SAFETY: the row's next `len` elements are consecutive and of type T.
                let block = unsafe {
                    std::slice::from_raw_parts(self.start.cast::<T>().offset(position), len)
                };
                return Operand::Block(block);
            }
        }
        let mut done = 0;
        while done < len {
            let count = (inner - column).min(len - done);
            let position = self.row_start(outer, row) + column as isize * stride;
            // SAFETY: the row's next `count` elements, `stride` apart, are the tensor's.
            unsafe { self.fill(position, stride, &mut scratch[done..done + count]) };
            done += count;
            (row, column) = (row + 1, 0);
        }
        Operand::Block(scratch)
    }

    /// Position of the first element of a row.
    #[inline(always)]
    fn row_start(&self, outer: &[usize], mut row: usize) -> isize {
        let mut position = 0;
        for (axis, &dim) in outer.iter().enumerate().rev() {
            position += (row % dim) as isize * self.strides[axis];
            row /= dim;
        }
        position
    }

    /// Converts `out.len()` elements from `position` on.
    ///
    /// # Safety
    /// They lie in the tensor.
    #[inline(always)]
    unsafe fn fill<T: Compute>(&self, position: isize, stride: isize, out: &mut [T]) {
        // SAFETY: promised by the caller; the dtype says what the bytes are.
        unsafe {
            match self.dtype {
                DType::F32 => self.convert(position, stride, out, T::from_f32),
                DType::BF16 => self.convert(position, stride, out, |x: bf16| {
                    T::from_f32(f32::from_bits(u32::from(x.to_bits()) << 16))
                }),
                DType::F16 if stride == 1 => {
                    let from = self.start.cast::<f16>().offset(position);
                    T::from_f16(std::slice::from_raw_parts(from, out.len()), out);
                }
                DType::Bool => {
                    let truth = |x: u8| if x != 0 { T::one() } else { T::zero() };
                    self.convert(position, stride, out, truth);
                }
                _ => self.fill_rare(position, stride, out),
            }
        }
    }

    /// The same for types that are no formula's own; apart, to keep the hot loop small.
    ///
    /// # Safety
    /// As [`Self::fill`].
    #[inline(never)]
    unsafe fn fill_rare<T: Compute>(&self, position: isize, stride: isize, out: &mut [T]) {
        match_dtype!(self.dtype, A => {
            // SAFETY: promised by the caller; the dtype says what the bytes are.
            unsafe { self.convert(position, stride, out, |x: A| T::from_f64(x.to_f64())) }
        });
    }

    /// # Safety
    /// `out.len()` elements of type `A` from `position` on, `stride` apart, lie in the tensor.
    #[inline(always)]
    unsafe fn convert<A: Copy, T: Copy>(
        &self,
        position: isize,
        stride: isize,
        out: &mut [T],
        widen: impl Fn(A) -> T,
    ) {
        // SAFETY: promised by the caller.
        let from = unsafe { self.start.cast::<A>().offset(position) };
        match stride {
            // SAFETY: as above; there is at least one element to fill from.
            0 => out.fill(widen(unsafe { *from })),
            1 => {
                // SAFETY: promised by the caller.
                let from = unsafe { std::slice::from_raw_parts(from, out.len()) };
                for (value, &element) in out.iter_mut().zip(from) {
                    *value = widen(element);
                }
            }
            _ => {
                for (index, value) in out.iter_mut().enumerate() {
                    // SAFETY: promised by the caller.
                    *value = widen(unsafe { *from.offset(index as isize * stride) });
                }
            }
        }
    }
}

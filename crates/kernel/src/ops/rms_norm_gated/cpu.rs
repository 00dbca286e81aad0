//! Vectorised gated norm for f32 and bf16, with f32 arithmetic. A task owns a block of rows; a row is
//! read once and stays in the first-level cache for the second pass over it.

use super::reference::Options;
use crate::ops::ssd::cpu::rows::{Source, Target};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Lane, Simd, math};
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;

/// Rows of a task.
const BLOCK: usize = 32;

/// Inputs of both passes; `x` and `z` are contiguous rows as long as `weight`.
pub struct Norm<'a> {
    /// The values.
    pub x: Source<'a>,
    /// The gate.
    pub z: Option<Source<'a>>,
    /// One factor a column.
    pub weight: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Grouping, eps, order.
    pub options: Options,
}

/// Computes `y`, of the type of `x`.
pub fn forward(norm: &Norm, y: Target) {
    threads::for_each(norm.rows.div_ceil(BLOCK), |task| {
        let rows = task * BLOCK..norm.rows.min((task + 1) * BLOCK);
        simd::dispatch(Forward { norm, rows, y });
    });
}

/// Computes the gradients; `dz` is written where there is a gate.
pub fn backward(norm: &Norm, dy: Source, dx: Target, dz: Option<Target>, dweight: &mut [f32]) {
    let (tasks, columns) = (norm.rows.div_ceil(BLOCK), norm.weight.len());
    let mut sums = Scratch::<f32>::new(tasks * columns);
    let shared = SharedMut::new(&mut sums);
    threads::for_each(tasks, |task| {
        let rows = task * BLOCK..norm.rows.min((task + 1) * BLOCK);
        // SAFETY: every task has its own row of sums.
        let dweight = unsafe { shared.slice(task * columns, columns) };
        simd::dispatch(Backward { norm, rows, dy, dx, dz, dweight });
    });
    dweight.fill(0.0);
    for part in sums.chunks_exact(columns.max(1)) {
        dweight.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}

/// A full or partial vector.
///
/// # Safety
/// `count` elements are readable.
#[inline(always)]
unsafe fn load<S: Simd, T: Lane>(s: S, from: *const T, count: usize) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { if count >= S::LANES { T::load(s, from) } else { T::load_partial(s, from, count) } }
}

/// Writes a full or partial vector.
///
/// # Safety
/// `count` elements are writable.
#[inline(always)]
unsafe fn store<S: Simd, T: Lane>(s: S, to: *mut T, value: S::F, count: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        if count >= S::LANES {
            T::store(s, to, value);
        } else {
            T::store_partial(s, to, value, count);
        }
    }
}

struct Forward<'a> {
    norm: &'a Norm<'a>,
    rows: std::ops::Range<usize>,
    y: Target,
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.norm.x, self.norm.z, self.y) {
            (Source::F32(x), None, Target::F32(y)) => forward_rows(s, &self, x, None, y),
            (Source::F32(x), Some(Source::F32(z)), Target::F32(y)) => {
                forward_rows(s, &self, x, Some(z), y);
            }
            (Source::Bf16(x), None, Target::Bf16(y)) => forward_rows(s, &self, x, None, y),
            (Source::Bf16(x), Some(Source::Bf16(z)), Target::Bf16(y)) => {
                forward_rows(s, &self, x, Some(z), y);
            }
            _ => unreachable!("x, z and y share a type"),
        }
    }
}

/// One group of one row: what the two passes over it share.
struct Group<'a> {
    /// First element in the arrays.
    at: usize,
    /// First column.
    column: usize,
    len: usize,
    before: bool,
    eps: f32,
    /// Values under the norm.
    values: &'a mut [f32],
    /// `silu(z)`.
    gates: &'a mut [f32],
}

impl Group<'_> {
    /// Fills `values` and `gates` and returns the inverse root of the mean square.
    ///
    /// # Safety
    /// The group lies in `x` and `z`.
    #[inline(always)]
    unsafe fn load<S: Simd, T: Lane>(&mut self, s: S, x: &[T], z: Option<&[T]>) -> S::F {
        let mut squares = s.zero();
        for offset in (0..self.len).step_by(S::LANES) {
            let count = self.len - offset;
            // SAFETY: promised by the caller; the tiles are padded.
            unsafe {
                let mut value = load(s, x.as_ptr().add(self.at + offset), count);
                if let Some(z) = z {
                    let z = load(s, z.as_ptr().add(self.at + offset), count);
                    let gate = s.mul(z, math::sigmoid(s, z));
                    s.store(self.gates.as_mut_ptr().add(offset), gate);
                    if !self.before {
                        value = s.mul(value, gate);
                    }
                }
                s.store(self.values.as_mut_ptr().add(offset), value);
                squares = s.fma(value, value, squares);
            }
        }
        let mean = s.reduce_add(squares) / self.len as f32;
        s.splat(1.0 / (mean + self.eps).sqrt())
    }
}

#[inline(always)]
fn forward_rows<S: Simd, T: Lane>(s: S, task: &Forward, x: &[T], z: Option<&[T]>, y: SharedMut<T>) {
    let Options { group_size, eps, norm_before_gate } = task.norm.options;
    let columns = task.norm.weight.len();
    assert!(x.len() >= task.rows.end * columns && z.is_none_or(|z| z.len() >= x.len()));
    let mut values = Scratch::<f32>::new(group_size.next_multiple_of(16));
    let mut gates = Scratch::<f32>::new(group_size.next_multiple_of(16));
    for start in (task.rows.start * columns..task.rows.end * columns).step_by(group_size) {
        let mut group = Group {
            at: start,
            column: start % columns,
            len: group_size,
            before: norm_before_gate,
            eps: eps as f32,
            values: &mut values,
            gates: &mut gates,
        };
        // SAFETY: groups tile the rows, which lie in the arrays and belong to this task.
        unsafe {
            let factor = group.load(s, x, z);
            for offset in (0..group.len).step_by(S::LANES) {
                let count = group.len - offset;
                let weight = load(s, task.norm.weight.as_ptr().add(group.column + offset), count);
                let value = s.load(group.values.as_ptr().add(offset));
                let mut result = s.mul(s.mul(value, factor), weight);
                if z.is_some() && norm_before_gate {
                    result = s.mul(result, s.load(group.gates.as_ptr().add(offset)));
                }
                store(s, y.ptr().add(group.at + offset), result, count);
            }
        }
    }
}

struct Backward<'a> {
    norm: &'a Norm<'a>,
    rows: std::ops::Range<usize>,
    dy: Source<'a>,
    dx: Target,
    dz: Option<Target>,
    dweight: &'a mut [f32],
}

/// Typed views of a backward task's arrays.
struct Arrays<'a, T> {
    x: &'a [T],
    z: Option<&'a [T]>,
    dy: &'a [T],
    dx: SharedMut<T>,
    dz: Option<SharedMut<T>>,
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.norm.x, self.dy, self.dx) {
            (Source::F32(x), Source::F32(dy), Target::F32(dx)) => {
                let z =
                    self.norm.z.and_then(|z| if let Source::F32(z) = z { Some(z) } else { None });
                let dz = self.dz.and_then(|d| if let Target::F32(d) = d { Some(d) } else { None });
                backward_rows::<S, f32>(s, self, Arrays { x, z, dy, dx, dz });
            }
            (Source::Bf16(x), Source::Bf16(dy), Target::Bf16(dx)) => {
                let z =
                    self.norm.z.and_then(|z| if let Source::Bf16(z) = z { Some(z) } else { None });
                let dz = self.dz.and_then(|d| if let Target::Bf16(d) = d { Some(d) } else { None });
                backward_rows::<S, bf16>(s, self, Arrays { x, z, dy, dx, dz });
            }
            _ => unreachable!("gradients have the type of the input"),
        }
    }
}

#[inline(always)]
fn backward_rows<S: Simd, T: Lane>(s: S, task: Backward, arrays: Arrays<T>) {
    let Options { group_size, eps, norm_before_gate } = task.norm.options;
    let columns = task.norm.weight.len();
    let (x, z, dy) = (arrays.x, arrays.z, arrays.dy);
    assert!(x.len() >= task.rows.end * columns && dy.len() >= x.len());
    assert!(z.is_none_or(|z| z.len() >= x.len()));
    let one = s.splat(1.0);
    let mut values = Scratch::<f32>::new(group_size.next_multiple_of(16));
    let mut gates = Scratch::<f32>::new(group_size.next_multiple_of(16));
    for start in (task.rows.start * columns..task.rows.end * columns).step_by(group_size) {
        let mut group = Group {
            at: start,
            column: start % columns,
            len: group_size,
            before: norm_before_gate,
            eps: eps as f32,
            values: &mut values,
            gates: &mut gates,
        };
        let gated_after = z.is_some() && norm_before_gate;
        // SAFETY: groups tile the rows, which lie in the arrays and belong to this task.
        unsafe {
            let factor = group.load(s, x, z);
            let mut products = s.zero();
            for offset in (0..group.len).step_by(S::LANES) {
                let count = group.len - offset;
                let weight = load(s, task.norm.weight.as_ptr().add(group.column + offset), count);
                let mut upstream = load(s, dy.as_ptr().add(group.at + offset), count);
                if gated_after {
                    upstream = s.mul(upstream, s.load(group.gates.as_ptr().add(offset)));
                }
                let unit = s.mul(s.load(group.values.as_ptr().add(offset)), factor);
                let product = s.mul(upstream, unit);
                products = s.fma(product, weight, products);
                let sum = task.dweight.as_mut_ptr().add(group.column + offset);
                store(s, sum, s.add(load(s, sum, count), product), count);
            }
            let mean = s.splat(s.reduce_add(products) / group.len as f32);
            for offset in (0..group.len).step_by(S::LANES) {
                let (at, count) = (group.at + offset, group.len - offset);
                let weight = load(s, task.norm.weight.as_ptr().add(group.column + offset), count);
                let cotangent = load(s, dy.as_ptr().add(at), count);
                let unit = s.mul(s.load(group.values.as_ptr().add(offset)), factor);
                let gate = s.load(group.gates.as_ptr().add(offset));
                let upstream = if gated_after { s.mul(cotangent, gate) } else { cotangent };
                let centred = s.sub(s.mul(upstream, weight), s.mul(unit, mean));
                let dvalue = s.mul(factor, centred);
                let into_x =
                    if z.is_some() && !norm_before_gate { s.mul(dvalue, gate) } else { dvalue };
                store(s, arrays.dx.ptr().add(at), into_x, count);
                let (Some(z), Some(dz)) = (z, arrays.dz) else { continue };
                let z = load(s, z.as_ptr().add(at), count);
                let sigmoid = math::sigmoid(s, z);
                let slope = s.mul(sigmoid, s.fma(z, s.sub(one, sigmoid), one));
                let into_gate = if norm_before_gate {
                    s.mul(s.mul(cotangent, unit), weight)
                } else {
                    s.mul(dvalue, load(s, x.as_ptr().add(at), count))
                };
                store(s, dz.ptr().add(at), s.mul(into_gate, slope), count);
            }
        }
    }
}

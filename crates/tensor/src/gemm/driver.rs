//! The outermost loops of a product: rounds that bound the scratch memory, and spans of k.
//!
//! A product of one span finishes C tile by tile. Longer ones sum every span into a matrix of its
//! own and add these in order, so that the sum of an element does not depend on how many spans are
//! computed at the same time.

use std::ops::Range;

use danaus_runtime::pool::Buffer;
use danaus_runtime::threads;

use super::Mat;
use super::config::{Plan, SPAN, pieces, worth_threads};
use super::engine::Kernels;
use super::epilogue::{Finish, Output};
use super::scratch::{self, Slot};
use super::span::{Layout, Span, Target};

/// Bytes of packed operands beyond which a product is computed in several rounds.
const MAX_PACKED_BYTES: usize = 64 << 20;

/// Rows of A or columns of B as packing sees them.
#[derive(Clone, Copy)]
pub struct Operand {
    ptr: *const u8,
    /// Bytes of an element.
    pub element_bytes: isize,
    /// Rows of A or columns of B.
    pub lanes: usize,
    /// Elements between lanes.
    pub lane_stride: isize,
    /// Elements between successive k.
    pub depth_stride: isize,
}

impl Operand {
    /// The rows of A (`a` is m x k).
    pub fn rows<T>(a: Mat<T>) -> Self {
        Self {
            ptr: a.ptr.cast(),
            element_bytes: size_of::<T>() as isize,
            lanes: a.rows,
            lane_stride: a.row_stride,
            depth_stride: a.col_stride,
        }
    }

    /// Address of one element.
    ///
    /// # Safety
    /// The element exists.
    pub unsafe fn at(&self, lane: usize, depth: usize) -> *const u8 {
        let elements = lane as isize * self.lane_stride + depth as isize * self.depth_stride;
        // SAFETY: the caller asks for elements of the matrix only.
        unsafe { self.ptr.offset(elements * self.element_bytes) }
    }

    /// Lanes `range` alone.
    unsafe fn narrow(&self, range: Range<usize>) -> Self {
        // SAFETY: the caller names a range of lanes that exist.
        Self { ptr: unsafe { self.at(range.start, 0) }, lanes: range.len(), ..*self }
    }
}

/// One product, ready for the loops.
pub struct Problem<C: Output> {
    pub kernels: Kernels<C::Acc>,
    pub a: Operand,
    pub b: Operand,
    pub depth: usize,
    pub finish: Finish<C>,
    pub parallel: bool,
}

// SAFETY: the pointers are read by all tasks, and C is written by tasks in disjoint tiles.
unsafe impl<C: Output> Sync for Problem<C> {}

/// Runs tasks on the pool or one after another.
pub fn run_tasks(parallel: bool, count: usize, task: impl Fn(usize) + Sync + Send) {
    if parallel {
        threads::for_each(count, task);
    } else {
        (0..count).for_each(task);
    }
}

/// Computes the whole product.
///
/// # Safety
/// As [`super::gemm_with`]; no dimension is zero.
pub unsafe fn run<C: Output>(mut problem: Problem<C>) {
    let Kernels { wide, b, .. } = problem.kernels;
    if problem.a.lanes <= wide.tiles.len() && b.direct && problem.b.lane_stride == 1 {
        problem.kernels.micro = wide;
    }
    let (m, n, k) = (problem.a.lanes, problem.b.lanes, problem.depth);
    // Rounds over rows and columns bound the scratch memory; they do not change any sum.
    let unit = problem.kernels.micro.unit_bytes * k.clamp(1, SPAN);
    let longest = (MAX_PACKED_BYTES / unit).max(1024);
    for columns in pieces(n, longest, problem.kernels.micro.cols) {
        for rows in pieces(m, longest, 1) {
            // SAFETY: the ranges lie in the matrices.
            unsafe {
                let part = Problem {
                    a: problem.a.narrow(rows.clone()),
                    b: problem.b.narrow(columns.clone()),
                    finish: problem.finish.narrow(rows, columns.clone()),
                    ..problem
                };
                part.run_spans();
            }
        }
    }
}

impl<C: Output> Problem<C> {
    unsafe fn run_spans(&self) {
        let micro = &self.kernels.micro;
        let (m, n) = (self.a.lanes, self.b.lanes);
        let span_depth = self.depth.min(SPAN);
        let plan = Plan::new(m, n, span_depth, micro.tiles.len(), micro.cols);
        if self.depth <= SPAN {
            let parallel = self.parallel && plan.parallel;
            // SAFETY: promised by the caller.
            return unsafe { self.product(&plan, 0..self.depth, Target::Finish, parallel) };
        }
        let spans: Vec<Range<usize>> = pieces(self.depth, SPAN, 16).collect();
        let parallel = self.parallel && worth_threads(m, n, self.depth);
        let elements = m * n;
        let total = scratch::buffer(elements * size_of::<C::Acc>());
        let at_once = plan.spans_at_once(spans.len());
        let mut partial: Vec<Buffer> = Vec::new();
        for (group_index, group) in spans.chunks(at_once).enumerate() {
            // The first span of all is summed into the total itself.
            let fresh = usize::from(group_index == 0);
            while partial.len() + fresh < group.len() {
                partial.push(scratch::buffer(elements * size_of::<C::Acc>()));
            }
            run_tasks(parallel, group.len(), |index| {
                let to = if index < fresh { &total } else { &partial[index - fresh] };
                let target = Target::Sums(to.as_ptr().cast());
                // SAFETY: every span has a buffer of its own.
                unsafe { self.product(&plan, group[index].clone(), target, parallel) };
            });
            let addends = &partial[..group.len() - fresh];
            let last = group.last().is_some_and(|span| span.end == self.depth);
            // SAFETY: all spans of the group are complete.
            unsafe { self.add_up(&total, addends, last, parallel) };
        }
    }

    /// Adds partial sums in order; after the last span finishes C.
    unsafe fn add_up(&self, total: &Buffer, addends: &[Buffer], last: bool, parallel: bool) {
        let (m, n) = (self.a.lanes, self.b.lanes);
        let (tasks, rows_per_task) = threads::split(m, (1 << 14) / n.max(1));
        run_tasks(parallel, tasks, |task| {
            let rows = (task * rows_per_task).min(m)..((task + 1) * rows_per_task).min(m);
            let start = total.as_ptr().cast::<C::Acc>();
            // SAFETY: tasks own disjoint rows of `total` and of C.
            unsafe {
                let start = start.add(rows.start * n);
                let sums = std::slice::from_raw_parts_mut(start, rows.len() * n);
                for addend in addends {
                    let from = addend.as_ptr().cast::<C::Acc>().add(rows.start * n);
                    let addend = std::slice::from_raw_parts(from, sums.len());
                    sums.iter_mut().zip(addend).for_each(|(sum, &more)| *sum += more);
                }
                if last {
                    let sums = Mat::row_major(start, rows.len(), n);
                    C::finish(&self.finish, sums, (rows, 0..n));
                }
            }
        });
    }

    /// The product over one span of k.
    unsafe fn product(
        &self,
        plan: &Plan,
        span: Range<usize>,
        target: Target<C::Acc>,
        parallel: bool,
    ) {
        let layout = Layout::new(self, plan, span.len());
        let work = |packed: *mut u8| {
            let span = Span { problem: self, plan, layout, start: span.start, packed, target };
            // SAFETY: promised by the caller; `packed` has the layout's size.
            unsafe { span.run(parallel) };
        };
        scratch::with(Slot::Packed, layout.bytes, work);
    }
}

//! One span of k: pack, multiply tiles, finish them.
//!
//! 1. A is packed into strips and, when several row tiles share it, B into panels;
//! 2. every tile of C loops over the blocks of k, strips and panels, and calls the register tile. A
//!    strip (28 KiB) stays in the first-level cache, the panels of a tile in the second. A product
//!    with one row tile packs each panel right before its only use instead, or reads it in place;
//! 3. after the last block the tile is finished: scaled, activated, rounded, stored.
//!
//! Sums live in C itself where they can (row-major C of the accumulator type, beta = 0), else in
//! scratch memory of the task.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Mat;
use super::config::{Plan, pieces};
use super::driver::{Operand, Problem, run_tasks};
use super::engine::{Kernels, Tile, TileFn};
use super::epilogue::Output;
use super::pack::{Pack, PackFn};
use super::scratch::{self, Slot};
#[cfg(target_arch = "x86_64")]
use super::skinny::{self, Skinny, SkinnyFn};

/// Where the sums of a span go.
#[derive(Clone, Copy)]
pub enum Target<Acc> {
    /// Finish them into C.
    Finish,
    /// Leave them as a row-major m x n matrix.
    Sums(*mut Acc),
}

// SAFETY: tasks write disjoint tiles of the matrix.
unsafe impl<Acc> Sync for Target<Acc> {}
// SAFETY: as above.
unsafe impl<Acc> Send for Target<Acc> {}

/// Where shared packed operands lie: first A unless tiles pack their own strips, then B unless tiles
/// pack their own panels. Within each,
/// one block of k after another, so that the part in use is contiguous.
#[derive(Clone, Copy)]
pub struct Layout {
    depth: usize,
    /// Lanes of a packed strip of A.
    strip_width: usize,
    /// Bytes per element of k of all strips, and of all panels.
    a_bytes: usize,
    b_bytes: usize,
    /// Start of packed B.
    b_start: usize,
    pub bytes: usize,
    direct_a: bool,
    direct_b: bool,
    #[cfg(target_arch = "x86_64")]
    skinny: Option<SkinnyFn>,
}

/// Largest footprint in bytes that register tiles read in place, unpacked: what the first-level
/// cache holds without conflicts between rows.
const DIRECT_BYTES: usize = 20 << 10;

impl Layout {
    /// The layout of a span of `depth` elements.
    pub fn new<C: Output>(problem: &Problem<C>, plan: &Plan, depth: usize) -> Self {
        let Kernels { micro, depth_per_unit, a, b, .. } = problem.kernels;
        let in_place = |operand: &Operand| {
            let row = operand.depth_stride.unsigned_abs() * micro.unit_bytes;
            operand.lane_stride == 1 && row * depth <= DIRECT_BYTES
        };
        // A panel that is used once is read in place however large it is.
        let used_once = plan.strips.count == 1 && problem.b.lane_stride == 1;
        let strip_width = plan.strips.longest().next_multiple_of(8);
        let packed_depth = depth.div_ceil(depth_per_unit);
        let a_bytes = plan.strips.count * strip_width * micro.unit_bytes;
        let b_bytes = plan.panels * micro.cols * micro.unit_bytes;
        let direct_a = a.direct && in_place(&problem.a);
        let a_total = if direct_a || plan.own_strips {
            0
        } else {
            (a_bytes * packed_depth).next_multiple_of(64)
        };
        let b_total = if plan.own_panels { 0 } else { b_bytes * packed_depth };
        Self {
            depth,
            strip_width,
            a_bytes,
            b_bytes,
            b_start: a_total,
            bytes: a_total + b_total,
            direct_a,
            direct_b: b.direct && plan.own_panels && (used_once || in_place(&problem.b)),
            #[cfg(target_arch = "x86_64")]
            skinny: skinny_routine(problem, depth),
        }
    }
}

/// The routine for few rows and a B whose columns are contiguous, if this is such a product.
#[cfg(target_arch = "x86_64")]
fn skinny_routine<C: Output>(problem: &Problem<C>, depth: usize) -> Option<SkinnyFn> {
    let kernels = &problem.kernels;
    let whole_units = depth.is_multiple_of(kernels.depth_per_unit);
    let fits = problem.b.depth_stride == 1 && whole_units;
    kernels.b.skinny.get(problem.a.lanes - 1).copied().filter(|_| fits)
}

/// The pieces of a block of k in which several strips or panels are packed. Where lanes are
/// neighbours, all strips of a few k come first, so that whole rows of the matrix are read.
fn packing_order(operand: &Operand, block: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let longest = if operand.lane_stride == 1 { 16 } else { block.len() };
    let end = block.end;
    block.clone().step_by(longest.max(1)).map(move |start| start..(start + longest).min(end))
}

/// One span of k with its packed operands.
pub struct Span<'a, C: Output> {
    /// The whole product.
    pub problem: &'a Problem<C>,
    /// How rows and columns are cut.
    pub plan: &'a Plan,
    /// How packed memory is used.
    pub layout: Layout,
    /// First k of the span.
    pub start: usize,
    /// Packed memory, `layout.bytes` long.
    pub packed: *mut u8,
    /// Where the sums go.
    pub target: Target<C::Acc>,
}

// SAFETY: tasks pack disjoint panels, then read them, and write disjoint tiles.
unsafe impl<C: Output> Sync for Span<'_, C> {}

impl<C: Output> Span<'_, C> {
    /// Packs, multiplies and finishes.
    ///
    /// # Safety
    /// The operands and the target are valid; `packed` has the layout's size.
    pub unsafe fn run(&self, parallel: bool) {
        let plan = self.plan;
        let strip_tasks =
            if self.layout.direct_a || plan.own_strips { 0 } else { plan.row_tiles.count };
        let panel_tasks = if plan.own_panels { 0 } else { plan.column_tiles.count };
        let worth_it = parallel && (strip_tasks + panel_tasks > 1);
        run_tasks(worth_it, strip_tasks + panel_tasks, |task| {
            // SAFETY: every task packs strips or panels of its own.
            unsafe {
                if task < strip_tasks {
                    self.pack_strips(plan.row_tiles.range(task));
                } else {
                    self.pack_panels(plan.column_tiles.range(task - strip_tasks));
                }
            }
        });
        let bytes = self.task_bytes();
        run_tasks(parallel, plan.tiles(), |task| {
            let strips = plan.row_tiles.range(task % plan.row_tiles.count);
            let panels = plan.column_tiles.range(task / plan.row_tiles.count);
            scratch::with(Slot::Task, bytes, |memory| {
                // SAFETY: operands are packed, tiles are disjoint, `memory` is as large as asked.
                unsafe { self.tile(strips, panels, memory) };
            });
        });
    }

    /// Blocks of k relative to the span.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<C> {
        let kernels = &self.problem.kernels;
        pieces(self.layout.depth, kernels.micro.max_depth * kernels.depth_per_unit, 8)
    }

    fn units(&self, depth: usize) -> usize {
        depth.div_ceil(self.problem.kernels.depth_per_unit)
    }

    fn strip_bytes(&self, block: &Range<usize>) -> usize {
        let unit_bytes = self.problem.kernels.micro.unit_bytes;
        self.units(block.len()) * self.layout.strip_width * unit_bytes
    }

    fn strip_at(&self, block: &Range<usize>, strip: usize) -> *mut u8 {
        let start = self.units(block.start) * self.layout.a_bytes;
        // SAFETY: the layout has room for all strips of all blocks.
        unsafe { self.packed.add(start + strip * self.strip_bytes(block)) }
    }

    fn panel_at(&self, block: &Range<usize>, panel: usize) -> *mut u8 {
        let micro = &self.problem.kernels.micro;
        let within = panel * self.units(block.len()) * micro.cols * micro.unit_bytes;
        let start = self.layout.b_start + self.units(block.start) * self.layout.b_bytes;
        // SAFETY: the layout has room for all panels of all blocks.
        unsafe { self.packed.add(start + within) }
    }

    unsafe fn pack_strips(&self, strips: Range<usize>) {
        for block in self.blocks() {
            // SAFETY: the strips have their place from this one on.
            unsafe {
                self.pack_block_of_strips(
                    &block,
                    strips.clone(),
                    self.strip_at(&block, strips.start),
                )
            };
        }
    }

    /// Packs strips of one block, one after another from `to` on.
    unsafe fn pack_block_of_strips(&self, block: &Range<usize>, strips: Range<usize>, to: *mut u8) {
        let a = &self.problem.a;
        for part in packing_order(a, block) {
            for (index, strip) in strips.clone().enumerate() {
                let first = self.plan.strips.range(strip).start;
                // Rows of the next strip are packed along where they exist: whole vectors are
                // faster, and nobody reads them.
                let panel = (to.wrapping_add(index * self.strip_bytes(block)), block.start);
                let pack = self.problem.kernels.a.pack;
                // SAFETY: promised by the caller.
                unsafe { self.pack(pack, a, (first, self.layout.strip_width), &part, panel) };
            }
        }
    }

    unsafe fn pack_panels(&self, panels: Range<usize>) {
        for block in self.blocks() {
            for part in packing_order(&self.problem.b, &block) {
                for panel in panels.clone() {
                    // SAFETY: the panel exists and has its place.
                    unsafe { self.pack_panel(&block, &part, panel, self.panel_at(&block, panel)) };
                }
            }
        }
    }

    unsafe fn pack_panel(
        &self,
        block: &Range<usize>,
        part: &Range<usize>,
        panel: usize,
        to: *mut u8,
    ) {
        let Kernels { micro, b, .. } = &self.problem.kernels;
        let lanes = (panel * micro.cols, micro.cols);
        // SAFETY: promised by the caller.
        unsafe { self.pack(b.pack, &self.problem.b, lanes, part, (to, block.start)) };
    }

    /// Packs `part` of k of one strip or panel into `panel`, which starts at the given k.
    unsafe fn pack(
        &self,
        pack: PackFn,
        operand: &Operand,
        (first_lane, width): (usize, usize),
        part: &Range<usize>,
        (panel, panel_start): (*mut u8, usize),
    ) {
        let done = self.units(part.start - panel_start) * width;
        // SAFETY: source and panel are described truly; the processor has the instructions.
        unsafe {
            pack(&Pack {
                source: operand.at(first_lane, self.start + part.start),
                lane_stride: operand.lane_stride,
                depth_stride: operand.depth_stride,
                lanes: (operand.lanes - first_lane).min(width),
                width,
                depth: part.len(),
                panel: panel.add(done * self.problem.kernels.micro.unit_bytes),
            });
        }
    }

    /// Scratch bytes of one tile: its own strips, its own panel, its sums.
    fn task_bytes(&self) -> usize {
        self.own_strips_bytes() + self.own_panel_bytes() + self.sums_len() * size_of::<C::Acc>()
    }

    /// Steps of the longest block.
    fn block_units(&self) -> usize {
        self.units(self.layout.depth).min(self.problem.kernels.micro.max_depth)
    }

    /// Steps of A that a tile packs at a time.
    fn own_units(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.layout.skinny.is_some() {
            return self.units(self.layout.depth);
        }
        self.block_units()
    }

    fn own_strips_bytes(&self) -> usize {
        if self.plan.own_strips && !self.layout.direct_a {
            let strips = self.plan.row_tiles.longest() * self.layout.strip_width;
            self.own_units() * strips * self.problem.kernels.micro.unit_bytes
        } else {
            0
        }
    }

    fn own_panel_bytes(&self) -> usize {
        let micro = &self.problem.kernels.micro;
        if self.plan.own_panels { self.block_units() * micro.cols * micro.unit_bytes } else { 0 }
    }

    fn sums_len(&self) -> usize {
        let in_place = matches!(self.target, Target::Sums(_)) || self.problem.finish.in_place();
        let rows = self.plan.row_tiles.longest() * self.plan.strips.longest();
        let cols = self.plan.column_tiles.longest() * self.problem.kernels.micro.cols;
        if in_place { 0 } else { rows * cols }
    }

    /// Where the sums of a tile are kept: first element and elements between rows.
    unsafe fn sums(&self, row: usize, cols: &Range<usize>, own: *mut u8) -> (*mut C::Acc, isize) {
        let (finish, n) = (&self.problem.finish, self.problem.b.lanes);
        match self.target {
            // SAFETY: the tile lies in the m x n matrix of sums.
            Target::Sums(ptr) => (unsafe { ptr.add(row * n + cols.start) }, n as isize),
            Target::Finish if finish.in_place() => {
                // SAFETY: the tile lies in C, whose elements are accumulators here.
                (unsafe { finish.c.at(row, cols.start) }.cast(), finish.c.row_stride)
            }
            Target::Finish => (own.cast(), cols.len() as isize),
        }
    }

    /// Computes one tile of C over all blocks of the span.
    unsafe fn tile(&self, strips: Range<usize>, panels: Range<usize>, memory: *mut u8) {
        let cols = self.problem.kernels.micro.cols;
        let rows =
            self.plan.strips.range(strips.start).start..self.plan.strips.range(strips.end - 1).end;
        let columns = panels.start * cols..(panels.end * cols).min(self.problem.b.lanes);
        // SAFETY: `memory` holds a panel and the sums, as `task_bytes` says.
        unsafe {
            let own_panel = memory.add(self.own_strips_bytes());
            let own_sums = own_panel.add(self.own_panel_bytes());
            let (sums, stride) = self.sums(rows.start, &columns, own_sums);
            let out = OutputTile { rows: rows.clone(), columns: columns.clone(), sums, stride };
            #[cfg(target_arch = "x86_64")]
            let blocks = match self.layout.skinny {
                Some(routine) => {
                    self.skinny_tile(routine, &out, &strips, memory);
                    None
                }
                None => Some(self.blocks()),
            };
            #[cfg(not(target_arch = "x86_64"))]
            let blocks = Some(self.blocks());
            for block in blocks.into_iter().flatten() {
                let strip_at = self.strips_of_tile(&block, &strips, memory);
                if self.plan.own_panels {
                    for panel in panels.clone() {
                        let b = self.own_panel(&block, panel, own_panel);
                        for strip in strips.clone() {
                            self.register_tile(&out, &block, (strip, strip_at(strip)), (panel, b));
                        }
                    }
                } else {
                    for strip in strips.clone() {
                        for panel in panels.clone() {
                            let b = self.packed_panel(&block, panel);
                            self.register_tile(&out, &block, (strip, strip_at(strip)), (panel, b));
                        }
                    }
                }
            }
            let finish = &self.problem.finish;
            let sums_are_final = finish.in_place() && finish.is_plain();
            if matches!(self.target, Target::Finish) && !sums_are_final {
                let (row_stride, col_stride) = (stride, 1);
                let (m, n) = (rows.len(), columns.len());
                let sums = Mat { ptr: sums.cast_const(), rows: m, cols: n, row_stride, col_stride };
                C::finish(finish, sums, (rows, columns));
            }
        }
    }

    /// All columns of a tile of few rows: all blocks of k of some columns before the next ones, so
    /// that memory is read in runs as long as the span.
    #[cfg(target_arch = "x86_64")]
    unsafe fn skinny_tile(
        &self,
        routine: SkinnyFn,
        out: &OutputTile<C::Acc>,
        strips: &Range<usize>,
        memory: *mut u8,
    ) {
        let b = &self.problem.b;
        let mut room = memory;
        let mut blocks = Vec::new();
        for block in self.blocks() {
            // SAFETY: `own_strips_bytes` gives room for the one strip of all blocks.
            let a = unsafe { self.strips_of_tile(&block, strips, room)(0) };
            room = room.wrapping_add(self.strip_bytes(&block));
            blocks.push((block, a));
        }
        for first in out.columns.clone().step_by(skinny::COLUMNS) {
            let columns = (out.columns.end - first).min(skinny::COLUMNS);
            for (block, (a, a_step)) in &blocks {
                // SAFETY: the columns exist; sums are f32 wherever there is such a routine.
                unsafe {
                    routine(&Skinny {
                        depth: self.units(block.len()),
                        a: *a,
                        a_step: *a_step,
                        b: b.at(first, self.start + block.start),
                        column_bytes: b.lane_stride * b.element_bytes,
                        columns,
                        c: out.sums.add(first - out.columns.start).cast(),
                        c_stride: out.stride,
                        accumulate: block.start > 0,
                    });
                }
            }
        }
    }

    /// Where the strips of a tile and the bytes between their steps are: in place, in shared packed
    /// memory, or packed to `memory` here.
    unsafe fn strips_of_tile(
        &self,
        block: &Range<usize>,
        strips: &Range<usize>,
        memory: *mut u8,
    ) -> impl Fn(usize) -> (*const u8, isize) + use<C> {
        let (layout, a) = (self.layout, self.problem.a);
        let (plan, k, strip_bytes) =
            (*self.plan, self.start + block.start, self.strip_bytes(block));
        let unit_bytes = self.problem.kernels.micro.unit_bytes as isize;
        let (first, packed) = if layout.direct_a {
            (0, memory)
        } else if plan.own_strips {
            // SAFETY: the caller gives room for the strips of one block.
            unsafe { self.pack_block_of_strips(block, strips.clone(), memory) };
            (strips.start, memory)
        } else {
            (0, self.strip_at(block, 0))
        };
        move |strip| {
            if layout.direct_a {
                // SAFETY: the strip's first row exists.
                let first = unsafe { a.at(plan.strips.range(strip).start, k) };
                (first, a.depth_stride * unit_bytes)
            } else {
                let start = packed.wrapping_add((strip - first) * strip_bytes);
                (start.cast_const(), layout.strip_width as isize * unit_bytes)
            }
        }
    }

    /// A panel and the bytes between its steps, from shared packed memory.
    fn packed_panel(&self, block: &Range<usize>, panel: usize) -> (*const u8, isize) {
        let micro = &self.problem.kernels.micro;
        (self.panel_at(block, panel), (micro.cols * micro.unit_bytes) as isize)
    }

    /// The same for a panel that only this tile uses: in place, or packed to `memory`.
    unsafe fn own_panel(
        &self,
        block: &Range<usize>,
        panel: usize,
        memory: *mut u8,
    ) -> (*const u8, isize) {
        let (micro, b) = (&self.problem.kernels.micro, &self.problem.b);
        // SAFETY: the panel's first column exists; a panel in place has all its columns.
        unsafe {
            if self.layout.direct_b && (panel + 1) * micro.cols <= b.lanes {
                let first = b.at(panel * micro.cols, self.start + block.start);
                return (first, b.depth_stride * micro.unit_bytes as isize);
            }
            self.pack_panel(block, block, panel, memory);
            (memory, (micro.cols * micro.unit_bytes) as isize)
        }
    }

    /// One register tile over one block of k.
    unsafe fn register_tile(
        &self,
        out: &OutputTile<C::Acc>,
        block: &Range<usize>,
        (strip, (a, a_step)): (usize, (*const u8, isize)),
        (panel, (b, b_step)): (usize, (*const u8, isize)),
    ) {
        let micro = &self.problem.kernels.micro;
        let rows = self.plan.strips.range(strip);
        let first_col = panel * micro.cols;
        // SAFETY: the strip and the panel exist, packed or in place, and so do their sums.
        unsafe {
            let down = (rows.start - out.rows.start) as isize * out.stride;
            let tile = Tile {
                depth: self.units(block.len()),
                a,
                a_step,
                b,
                b_step,
                c: out.sums.offset(down).add(first_col - out.columns.start),
                c_stride: out.stride,
                accumulate: block.start > 0,
            };
            let kernel = micro.tiles[rows.len() - 1];
            let cols = out.columns.end - first_col;
            if cols >= micro.cols {
                kernel(&tile);
            } else {
                edge_tile(&tile, kernel, (rows.len(), cols), micro.cols);
            }
        }
    }
}

/// A tile of C and where its sums are.
struct OutputTile<Acc> {
    rows: Range<usize>,
    columns: Range<usize>,
    sums: *mut Acc,
    stride: isize,
}

/// Sums of the largest register tile.
const MAX_REGISTER_TILE: usize = 14 * 32;

/// A register tile at the right edge: all columns into a copy, those that exist from there.
unsafe fn edge_tile<Acc: Copy + std::ops::AddAssign>(
    tile: &Tile<Acc>,
    kernel: TileFn<Acc>,
    (rows, cols): (usize, usize),
    width: usize,
) {
    let mut copy = [const { MaybeUninit::<Acc>::uninit() }; MAX_REGISTER_TILE];
    let start: *mut Acc = copy.as_mut_ptr().cast();
    let whole = Tile { c: start, c_stride: width as isize, accumulate: false, ..*tile };
    // SAFETY: the copy holds `rows * width` sums, of which the kernel writes all.
    unsafe {
        kernel(&whole);
        for row in 0..rows {
            let to = tile.c.offset(row as isize * tile.c_stride);
            for col in 0..cols {
                let sum = *start.add(row * width + col);
                if tile.accumulate {
                    *to.add(col) += sum;
                } else {
                    to.add(col).write(sum);
                }
            }
        }
    }
}

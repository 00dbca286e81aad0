//! Shape -> blocking. Pure functions; nothing here knows the number of threads.
//!
//! k is cut first, by its length alone: into *spans* of at most [`SPAN`] elements, whose products are
//! separate sums added in order, and each span into *blocks* that fit the cache. The order in which
//! one element of C is summed is therefore a function of k (and of the instruction set), not of m, n
//! or the element's place. Rows and columns are cut only to spread work and to reuse caches.

use std::ops::Range;

/// Longest piece of k summed in one go. Longer sums are added from pieces, which lets tall products
/// with few output tiles use all threads, and halves the rounding error besides.
pub const SPAN: usize = 2048;

/// Tile limits in register tiles: 8 strips of 14 rows and 8 panels of 32 columns of f32 are 0.2 MiB
/// of A and 0.5 MiB of B at 512 steps of k, within the 1 MiB second-level cache.
const MAX_TILE_STRIPS: usize = 8;
const MAX_TILE_PANELS: usize = 8;
/// Tiles wanted for a large product, so that the last ones balance the threads.
const WANTED_TILES: usize = 32;
/// Multiply-adds below which a tile is not cut further (about 30 microseconds).
const LEAST_TILE_WORK: usize = 2 << 20;
/// Multiply-adds below which a product runs on the calling thread.
const LEAST_PARALLEL_WORK: usize = 1 << 20;
/// The same for the elements of the larger operand: a few rows times a matrix take as long as the
/// matrix takes to be read.
const LEAST_PARALLEL_ELEMENTS: usize = 1 << 18;

/// Whether an m x n x k product is worth more than one thread.
pub fn worth_threads(m: usize, n: usize, k: usize) -> bool {
    m * n * k > LEAST_PARALLEL_WORK || m.max(n) * k > LEAST_PARALLEL_ELEMENTS
}

/// `len` items cut into `count` runs whose lengths differ by at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Number of runs.
    pub count: usize,
    len: usize,
}

impl Parts {
    /// The fewest runs of at most `longest` items.
    pub fn new(len: usize, longest: usize) -> Self {
        Self { count: len.div_ceil(longest.max(1)).max(1), len }
    }

    /// Run number `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        let (base, extra) = (self.len / self.count, self.len % self.count);
        let start = index * base + index.min(extra);
        start..start + base + usize::from(index < extra)
    }

    /// Length of the longest run.
    pub fn longest(&self) -> usize {
        self.len.div_ceil(self.count)
    }
}

/// Pieces of `0..len` of equal size (a multiple of `multiple`) and at most `longest`.
pub fn pieces(len: usize, longest: usize, multiple: usize) -> impl Iterator<Item = Range<usize>> {
    let count = len.div_ceil(longest).max(1);
    let size = len.div_ceil(count).next_multiple_of(multiple).max(multiple);
    (0..len).step_by(size).map(move |start| start..(start + size).min(len))
}

/// How the rows and columns of one product are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows cut into strips, one register tile high.
    pub strips: Parts,
    /// Strips cut into tiles.
    pub row_tiles: Parts,
    /// Number of panels, one register tile wide.
    pub panels: usize,
    /// Panels cut into tiles.
    pub column_tiles: Parts,
    /// Whether a tile packs its own panels of B: they are used by this tile alone.
    pub own_panels: bool,
    /// Whether a tile packs its own strips of A: at most one other tile uses them, and packing twice
    /// costs less than a trip through the third-level cache.
    pub own_strips: bool,
    /// Whether the product is worth more than one thread.
    pub parallel: bool,
}

impl Plan {
    /// The plan of an m x n x k product with register tiles of `rows` x `cols`.
    pub fn new(m: usize, n: usize, k: usize, rows: usize, cols: usize) -> Self {
        let strips = Parts::new(m, rows);
        let panels = n.div_ceil(cols);
        let tile_work = |s: usize, p: usize| s * rows * p * cols * k;
        let count = |s: usize, p: usize| strips.count.div_ceil(s) * panels.div_ceil(p);
        let (mut s, mut p) = (strips.count.min(MAX_TILE_STRIPS), panels.min(MAX_TILE_PANELS));
        let single_row_tile = strips.count <= MAX_TILE_STRIPS;
        while count(s, p) < WANTED_TILES && tile_work(s, p) > LEAST_TILE_WORK && s * p > 1 {
            let wide = p * cols > 4 * s * rows || single_row_tile;
            if (wide && p > 1) || s == 1 {
                p = p.div_ceil(2);
            } else {
                s = s.div_ceil(2);
            }
        }
        let row_tiles = Parts::new(strips.count, s);
        let column_tiles = Parts::new(panels, p);
        Self {
            strips,
            row_tiles,
            panels,
            column_tiles,
            own_strips: column_tiles.count == 1 || (column_tiles.count == 2 && p * cols >= 128),
            own_panels: row_tiles.count == 1,
            parallel: worth_threads(m, n, k),
        }
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.row_tiles.count * self.column_tiles.count
    }

    /// Spans of k to compute at the same time: one when the tiles alone keep the threads busy.
    pub fn spans_at_once(&self, spans: usize) -> usize {
        (WANTED_TILES / 2).div_ceil(self.tiles()).min(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_pieces_cover_exactly() {
        for len in [1, 13, 14, 15, 64, 100, 1024, 2049] {
            let parts = Parts::new(len, 14);
            let mut next = 0;
            for range in (0..parts.count).map(|index| parts.range(index)) {
                assert_eq!(range.start, next);
                assert!(!range.is_empty() && range.len() <= 14);
                next = range.end;
            }
            assert_eq!(next, len);
            let mut next = 0;
            for range in pieces(len, 512, 2) {
                assert_eq!(range.start, next);
                assert!(!range.is_empty() && range.len() <= 512 && range.start % 2 == 0);
                next = range.end;
            }
            assert_eq!(next, len);
        }
    }

    #[test]
    fn large_products_have_many_tiles_and_small_ones_one() {
        for (m, n, k) in [(1024, 1024, 1024), (2048, 256, 1024), (256, 256, 2048)] {
            let tiles = Plan::new(m, n, k, 14, 32).tiles();
            assert!((16..=256).contains(&tiles), "{m} {n} {k}: {tiles} tiles");
        }
        let small = Plan::new(64, 64, 64, 14, 32);
        assert!(small.tiles() == 1 && small.own_panels && !small.parallel);
    }

    #[test]
    fn few_tiles_use_several_spans() {
        let plan = Plan::new(16, 16, 16384, 14, 32);
        assert_eq!(plan.spans_at_once(8), 8);
        assert_eq!(Plan::new(1024, 1024, 16384, 14, 32).spans_at_once(8), 1);
    }
}

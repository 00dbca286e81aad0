//! One pass over a tile that applies up to four butterfly factors of neighbouring strides.

use super::pattern::Step;
use super::tiles::TILE;
use danaus_runtime::simd::Simd;

/// Values of one factor: entry (o, i) of pair g lies at `4 g + o out + i inp`.
#[derive(Clone, Copy)]
struct Stage {
    values: *const f32,
    out: usize,
    inp: usize,
}

/// Factors of strides `stride, 2 stride, 4 stride, ..`, applied in this order or in the reverse
/// one.
pub(super) struct Butterfly {
    /// By stride, the smallest first.
    stages: [Stage; 4],
    count: usize,
    stride: usize,
    ascending: bool,
}

impl Butterfly {
    /// One to four factors whose strides double or halve from each to the next.
    pub fn of(steps: &[Step], sources: &[&[f32]]) -> Self {
        let (first, last) = (&steps[0], &steps[steps.len() - 1]);
        let ascending = first.pattern.d <= last.pattern.d;
        let stage = |step: &Step| {
            let blocks = step.blocks();
            let values = sources[step.source][step.range()].as_ptr();
            Stage { values, out: blocks.row_stride, inp: blocks.col_stride }
        };
        let mut stages = [stage(first); 4];
        for (index, step) in steps.iter().enumerate() {
            let place = if ascending { index } else { steps.len() - 1 - index };
            stages[place] = stage(step);
        }
        let stride = first.pattern.d.min(last.pattern.d);
        Self { stages, count: steps.len(), stride, ascending }
    }
}

/// Applies the factors in place to a tile of `features`; only the first `vectors` of every feature.
///
/// # Safety
/// The tile holds `features * TILE` elements and the factors have that many rows.
#[inline(always)]
pub(super) unsafe fn pass<S: Simd>(
    s: S,
    group: &Butterfly,
    features: usize,
    tile: *mut f32,
    vectors: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        match group.count {
            1 => run::<S, 2>(s, group, features, tile, vectors),
            2 => run::<S, 4>(s, group, features, tile, vectors),
            3 => run::<S, 8>(s, group, features, tile, vectors),
            _ => run::<S, 16>(s, group, features, tile, vectors),
        }
    }
}

/// [`pass`] for `P` points: `P = 2^count`.
#[inline(always)]
unsafe fn run<S: Simd, const P: usize>(
    s: S,
    group: &Butterfly,
    features: usize,
    tile: *mut f32,
    vectors: usize,
) {
    let stride = group.stride;
    for block in 0..features / (stride * P) {
        for low in 0..stride {
            for vector in 0..vectors {
                // SAFETY: points lie `stride` features apart inside the tile.
                unsafe {
                    let start = (block * P * stride + low) * TILE + vector * S::LANES;
                    let at = tile.add(start);
                    let mut points = [s.zero(); P];
                    for t in 0..P {
                        points[t] = s.load(at.add(t * stride * TILE));
                    }
                    let place = (block, low, stride);
                    let stages = &group.stages;
                    if group.ascending {
                        stage::<S, P, 0>(s, &mut points, stages[0], place);
                        stage::<S, P, 1>(s, &mut points, stages[1], place);
                        stage::<S, P, 2>(s, &mut points, stages[2], place);
                        stage::<S, P, 3>(s, &mut points, stages[3], place);
                    } else {
                        stage::<S, P, 3>(s, &mut points, stages[3], place);
                        stage::<S, P, 2>(s, &mut points, stages[2], place);
                        stage::<S, P, 1>(s, &mut points, stages[1], place);
                        stage::<S, P, 0>(s, &mut points, stages[0], place);
                    }
                    for t in 0..P {
                        s.store(at.add(t * stride * TILE), points[t]);
                    }
                }
            }
        }
    }
}

/// The factor of stride `stride << U` on points in registers; nothing where there are not so many.
///
/// # Safety
/// The values of the pairs of this block exist.
#[inline(always)]
unsafe fn stage<S: Simd, const P: usize, const U: usize>(
    s: S,
    points: &mut [S::F; P],
    stage: Stage,
    (block, low, stride): (usize, usize, usize),
) {
    if P >> U < 2 {
        return;
    }
    let mask = (1 << U) - 1;
    for k in 0..P / 2 {
        let (inside, outside) = (k & mask, k >> U);
        let (a, b) = (outside << (U + 1) | inside, outside << (U + 1) | 1 << U | inside);
        let block = block * (P >> (U + 1)) + outside;
        let pair = (block << U) * stride + inside * stride + low;
        // SAFETY: promised by the caller.
        unsafe {
            let w = stage.values.add(4 * pair);
            let entry = |o: usize, i: usize| *w.add(o * stage.out + i * stage.inp);
            let (x, y) = (points[a], points[b]);
            // Sums start from zero, as in factors that are not merged.
            points[a] = s.fma(s.splat(entry(0, 1)), y, s.mul(s.splat(entry(0, 0)), x));
            points[b] = s.fma(s.splat(entry(1, 1)), y, s.mul(s.splat(entry(1, 0)), x));
        }
    }
}

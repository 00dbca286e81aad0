//! The forward pass; decoding is the same pass over single tokens.

use super::plan::{BLOCK, Piece, forward_tile, pieces, spans};
use super::sweep::{Columns, Sweep};
use super::{NanInDelta, Parameters, Scan, TaskMap, Tiles, enter, leave, write};
use crate::ops::ssd::cpu::epilogue::Epilogue;
use crate::ops::ssd::cpu::rows::{Target, pack};
use crate::ops::ssd::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::dispatch;
use danaus_runtime::threads::{self, SharedMut};
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes `y`, contiguous rows of `channels`, and the last states `[states, channels, d_state]`.
///
/// # Errors
/// When `delta` holds a NaN.
pub fn forward(scan: &Scan, y: Target, last: &mut [f32]) -> Result<(), NanInDelta> {
    let (pieces, spans) = (pieces(&scan.shape), spans(&scan.shape, scan.runs));
    let (last, clean) = (SharedMut::new(last), AtomicBool::new(true));
    threads::for_each(pieces.len() * spans.len(), |task| {
        let (piece, span) = (&pieces[task % pieces.len()], &spans[task / pieces.len()]);
        let mut work = Work::new(scan, piece);
        for run in &scan.runs[span.clone()] {
            // SAFETY: every span and piece has its own rows, columns and states.
            if !unsafe { work.run(run, y, last) } {
                clean.store(false, Ordering::Relaxed);
            }
        }
    });
    if clean.into_inner() { Ok(()) } else { Err(NanInDelta) }
}

/// A task.
struct Work<'a> {
    scan: &'a Scan<'a>,
    piece: &'a Piece,
    parameters: Parameters,
    tiles: Tiles,
    b: TaskMap<'a>,
    c: TaskMap<'a>,
    state: Scratch<f32>,
}

impl<'a> Work<'a> {
    fn new(scan: &'a Scan<'a>, piece: &'a Piece) -> Self {
        let n = scan.shape.d_state;
        // A decoding step needs no more room than its tokens.
        let tile = forward_tile().min(scan.shape.tokens.max(1));
        Self {
            scan,
            piece,
            parameters: Parameters::new(scan, piece),
            tiles: Tiles::new(tile, piece, scan.z.is_some()),
            b: TaskMap::new(scan.b, piece, n, tile),
            c: TaskMap::new(scan.c, piece, n, tile),
            state: Scratch::new(piece.blocks() * n * BLOCK),
        }
    }

    /// One sequence; whether `delta` is free of NaN.
    ///
    /// # Safety
    /// No other task writes these rows, columns and states.
    unsafe fn run(&mut self, run: &Run, y: Target, last: SharedMut<f32>) -> bool {
        let (scan, piece) = (self.scan, self.piece);
        enter(scan, run, piece, &mut self.state);
        let mut clean = true;
        for offset in (0..run.len).step_by(forward_tile()) {
            let token = run.start + offset;
            let rows = forward_tile().min(run.len - offset);
            clean &= self.tiles.load(scan, piece, &self.parameters.bias, token, rows);
            self.b.load(token, rows);
            self.c.load(token, rows);
            self.sweep(rows);
            if let Some(z) = scan.z {
                pack(z, (token, piece.first), (rows, piece.channels), &mut self.tiles.z);
            }
            dispatch(Epilogue {
                y: &mut self.tiles.y,
                x: &self.tiles.u,
                d: scan.d.map(|_| &self.parameters.d[..]),
                z: scan.z.map(|_| &self.tiles.z[..]),
                rows,
                columns: piece.channels,
            });
            // SAFETY: promised by the caller.
            unsafe { write(scan, piece, (token, rows), &self.tiles.y, y) };
        }
        if let Some(index) = run.last {
            // SAFETY: promised by the caller.
            unsafe { leave(scan, index, piece, &self.state, last) };
        }
        clean
    }

    fn sweep(&mut self, rows: usize) {
        let (n, width) = (self.scan.shape.d_state, self.piece.width());
        for (index, state) in self.state.chunks_exact_mut(n * BLOCK).enumerate() {
            dispatch(Sweep {
                columns: Columns { rows, width, first: index * BLOCK },
                n,
                a: &self.parameters.a[index * n * BLOCK..],
                b: self.b.of_block(index),
                c: self.c.of_block(index),
                delta: &self.tiles.delta,
                u: &self.tiles.u,
                state,
                y: &mut self.tiles.y,
                kept: None,
            });
        }
    }
}

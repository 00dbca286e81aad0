//! The backward pass: states are computed again from one kept state a tile, then every tile is walked
//! from its last token to its first.

use super::plan::{BLOCK, Piece, backward_tile, pieces, pieces_per_group, spans};
use super::reverse::{Gate, Reverse};
use super::sums::{MapGradient, MapSums, Parts};
use super::sweep::{Columns, Kept, Sweep};
use super::{Parameters, Scan, TaskMap, Tiles, enter, from_blocks, leave, to_blocks, write};
use crate::ops::ssd::cpu::rows::{Rows, Target, pack};
use crate::ops::ssd::runs::Run;
use crate::vector::sum_blocks;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::dispatch;
use danaus_runtime::threads::{self, SharedMut};

/// Cotangents of the results.
pub struct Cotangents<'a> {
    /// Rows of `channels`.
    pub y: Rows<'a>,
    /// `[states, channels, d_state]`; zero without.
    pub last_state: Option<&'a [f32]>,
}

/// Where the gradients go: contiguous arrays shaped like the inputs.
pub struct Gradients<'a> {
    /// Of `u`.
    pub u: Target,
    /// Of `delta`.
    pub delta: Target,
    /// Of `delta_bias`.
    pub delta_bias: &'a mut [f32],
    /// Of `a`.
    pub a: &'a mut [f32],
    /// Of `b`.
    pub b: MapGradient<'a>,
    /// Of `c`.
    pub c: MapGradient<'a>,
    /// Of `d`.
    pub d: &'a mut [f32],
    /// Of `z`, where there is one.
    pub z: Option<Target>,
    /// Of `initial_states`, where there are some.
    pub initial_states: Option<&'a mut [f32]>,
}

/// What tasks write to.
#[derive(Clone, Copy)]
struct Outputs {
    u: Target,
    delta: Target,
    z: Option<Target>,
    initial: Option<SharedMut<f32>>,
    /// `[spans, channels, d_state]`.
    a: SharedMut<f32>,
    /// `[spans, 2, channels]`: of D and of the bias.
    vectors: SharedMut<f32>,
    b: SharedMut<f32>,
    c: SharedMut<f32>,
}

/// Gradients of all inputs. NaN in `delta` gives gradients that mean nothing.
pub fn backward(scan: &Scan, cotangents: &Cotangents, mut to: Gradients) {
    let (list, spans) = (pieces(&scan.shape), spans(&scan.shape, scan.runs));
    let (count, per_group) = (spans.len(), pieces_per_group(&list));
    let (channels, len) = (scan.shape.channels, scan.shape.state_len());
    let mut a = Scratch::<f32>::new(count * len);
    let mut vectors = Scratch::<f32>::new(count * 2 * channels);
    let mut b = Parts::new(&scan.b, scan, count, per_group);
    let mut c = Parts::new(&scan.c, scan, count, per_group);
    let outputs = Outputs {
        u: to.u,
        delta: to.delta,
        z: to.z,
        initial: to.initial_states.as_deref_mut().map(SharedMut::new),
        a: SharedMut::new(&mut a),
        vectors: SharedMut::new(&mut vectors),
        b: SharedMut::new(&mut b.data),
        c: SharedMut::new(&mut c.data),
    };
    threads::for_each(list.len() * count, |task| {
        let (piece, span) = (&list[task % list.len()], task / list.len());
        let runs = &scan.runs[spans[span].clone()];
        let mut work = Work::new(scan, cotangents, piece, runs);
        // SAFETY: every span and piece has its own rows, columns, states and parts.
        unsafe {
            for run in runs {
                work.run(run, &outputs);
            }
            work.finish(span, &outputs);
        }
    });
    sum_blocks(&a, len, to.a);
    let mut sums = vec![0.0; 2 * channels];
    sum_blocks(&vectors, 2 * channels, &mut sums);
    to.d.copy_from_slice(&sums[..channels]);
    to.delta_bias.copy_from_slice(&sums[channels..]);
    b.finish(to.b);
    c.finish(to.c);
}

/// A task.
struct Work<'a> {
    scan: &'a Scan<'a>,
    cotangents: &'a Cotangents<'a>,
    piece: &'a Piece,
    tile: usize,
    parameters: Parameters,
    tiles: Tiles,
    /// Cotangents of the output, then gradients of `u` and `delta`.
    g: Scratch<f32>,
    du: Scratch<f32>,
    ddelta: Scratch<f32>,
    b: TaskMap<'a>,
    c: TaskMap<'a>,
    state: Scratch<f32>,
    ds: Scratch<f32>,
    /// The state before each tile.
    entering: Scratch<f32>,
    states: Scratch<f32>,
    decays: Scratch<f32>,
    da: Scratch<f32>,
    db: MapSums,
    dc: MapSums,
    dd: Scratch<f32>,
    dbias: Scratch<f32>,
}

impl<'a> Work<'a> {
    fn new(
        scan: &'a Scan<'a>,
        cotangents: &'a Cotangents<'a>,
        piece: &'a Piece,
        runs: &[Run],
    ) -> Self {
        let n = scan.shape.d_state;
        let tile = backward_tile(n);
        let longest = runs.iter().map(|run| run.len.div_ceil(tile)).max().unwrap_or(0);
        let state = piece.blocks() * n * BLOCK;
        let rows = || Scratch::new(tile * piece.width());
        Self {
            scan,
            cotangents,
            piece,
            tile,
            parameters: Parameters::new(scan, piece),
            tiles: Tiles::new(tile, piece, scan.z.is_some()),
            g: rows(),
            du: rows(),
            ddelta: rows(),
            b: TaskMap::new(scan.b, piece, n, tile),
            c: TaskMap::new(scan.c, piece, n, tile),
            state: Scratch::new(state),
            ds: Scratch::new(state),
            entering: Scratch::new(longest * state),
            states: Scratch::new((tile + 1) * n * BLOCK),
            decays: Scratch::new(tile * n * BLOCK),
            da: Scratch::new(state),
            db: MapSums::new(&scan.b, piece, tile, n),
            dc: MapSums::new(&scan.c, piece, tile, n),
            dd: Scratch::new(piece.width()),
            dbias: Scratch::new(piece.width()),
        }
    }

    /// One sequence.
    ///
    /// # Safety
    /// No other task writes these rows, columns and states.
    unsafe fn run(&mut self, run: &Run, to: &Outputs) {
        let (scan, piece) = (self.scan, self.piece);
        let tiles = run.len.div_ceil(self.tile);
        self.enter_tiles(run, tiles);
        let (n, len) = (scan.shape.d_state, scan.shape.state_len());
        match (self.cotangents.last_state, run.last) {
            (Some(last), Some(index)) => {
                to_blocks(&last[index * len..(index + 1) * len], piece, n, 1.0, &mut self.ds);
            }
            _ => self.ds.fill(0.0),
        }
        for index in (0..tiles).rev() {
            let offset = index * self.tile;
            let span = (run.start + offset, self.tile.min(run.len - offset));
            // SAFETY: promised by the caller.
            unsafe { self.reverse_tile(index, span, to) };
        }
        if let (Some(initial), Some(index)) = (to.initial, run.initial) {
            // SAFETY: promised by the caller.
            unsafe { leave(scan, index, piece, &self.ds, initial) };
        }
    }

    /// Keeps the state before each tile.
    fn enter_tiles(&mut self, run: &Run, tiles: usize) {
        enter(self.scan, run, self.piece, &mut self.state);
        let len = self.state.len();
        for index in 0..tiles {
            self.entering[index * len..(index + 1) * len].copy_from_slice(&self.state);
            if index + 1 < tiles {
                self.load(run.start + index * self.tile, self.tile);
                for block in 0..self.piece.blocks() {
                    self.sweep(block, self.tile, false);
                }
            }
        }
    }

    fn load(&mut self, token: usize, rows: usize) {
        self.tiles.load(self.scan, self.piece, &self.parameters.bias, token, rows);
        self.b.load(token, rows);
        self.c.load(token, rows);
    }

    fn sweep(&mut self, block: usize, rows: usize, keep: bool) {
        let n = self.scan.shape.d_state;
        let own = block * n * BLOCK..(block + 1) * n * BLOCK;
        let kept = Kept { states: &mut self.states, decays: &mut self.decays };
        dispatch(Sweep {
            columns: Columns { rows, width: self.piece.width(), first: block * BLOCK },
            n,
            a: &self.parameters.a[own.clone()],
            b: self.b.of_block(block),
            c: self.c.of_block(block),
            delta: &self.tiles.delta,
            u: &self.tiles.u,
            state: &mut self.state[own],
            y: &mut self.tiles.y,
            kept: keep.then_some(kept),
        });
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn reverse_tile(&mut self, index: usize, (token, rows): (usize, usize), to: &Outputs) {
        let (scan, piece, len) = (self.scan, self.piece, self.state.len());
        self.load(token, rows);
        let part = ((token, piece.first), (rows, piece.channels));
        pack(self.cotangents.y, part.0, part.1, &mut self.g);
        if let Some(z) = scan.z {
            pack(z, part.0, part.1, &mut self.tiles.z);
        }
        self.db.start_tile();
        self.dc.start_tile();
        self.state.copy_from_slice(&self.entering[index * len..(index + 1) * len]);
        for block in 0..piece.blocks() {
            self.sweep(block, rows, true);
            self.reverse_block(block, rows);
        }
        // SAFETY: promised by the caller.
        unsafe {
            write(scan, piece, (token, rows), &self.du, to.u);
            write(scan, piece, (token, rows), &self.ddelta, to.delta);
            if let Some(z) = to.z {
                write(scan, piece, (token, rows), &self.tiles.z, z);
            }
            self.db.end_tile(scan, piece, (token, rows), to.b);
            self.dc.end_tile(scan, piece, (token, rows), to.c);
        }
    }

    fn reverse_block(&mut self, block: usize, rows: usize) {
        let n = self.scan.shape.d_state;
        let columns = Columns { rows, width: self.piece.width(), first: block * BLOCK };
        let lanes = block * BLOCK..(block + 1) * BLOCK;
        let own = block * n * BLOCK..(block + 1) * n * BLOCK;
        if self.scan.z.is_some() {
            dispatch(Gate {
                columns,
                y: &self.tiles.y,
                u: &self.tiles.u,
                d: &self.parameters.d[lanes.clone()],
                z: &mut self.tiles.z,
                g: &mut self.g,
            });
        }
        dispatch(Reverse {
            columns,
            n,
            a: &self.parameters.a[own.clone()],
            b: self.b.of_block(block),
            c: self.c.of_block(block),
            d: &self.parameters.d[lanes.clone()],
            kept: Kept { states: &mut self.states, decays: &mut self.decays },
            u: &self.tiles.u,
            raw: &self.tiles.raw,
            delta: &self.tiles.delta,
            softplus: self.scan.delta_softplus,
            g: &self.g,
            ds: &mut self.ds[own.clone()],
            da: &mut self.da[own],
            db: self.db.of_block(block, n),
            dc: self.dc.of_block(block, n),
            dd: &mut self.dd[lanes.clone()],
            dbias: &mut self.dbias[lanes],
            du: &mut self.du,
            ddelta: &mut self.ddelta,
        });
    }

    /// Writes the sums over the span's tokens.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn finish(self, span: usize, to: &Outputs) {
        let (piece, n) = (self.piece, self.scan.shape.d_state);
        let channels = self.scan.shape.channels;
        let first = span * self.scan.shape.state_len() + piece.first * n;
        // SAFETY: promised by the caller.
        unsafe {
            from_blocks(&self.da, piece, n, to.a.slice(first, piece.channels * n));
            for (sums, to) in [(&self.db, to.b), (&self.dc, to.c)] {
                if sums.per_channel {
                    from_blocks(&sums.data, piece, n, to.slice(first, piece.channels * n));
                }
            }
            for (index, sums) in [&self.dd, &self.dbias].into_iter().enumerate() {
                let start = (2 * span + index) * channels + piece.first;
                let to = to.vectors.slice(start, piece.channels);
                to.copy_from_slice(&sums[..piece.channels]);
            }
        }
    }
}

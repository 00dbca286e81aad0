//! The convolution on a GPU, channel-last: neighbouring threads are neighbouring channels. Sums for
//! weight and bias go over runs of tokens of fixed length and are added in order, without atomics.

use crate::lists::list;
use crate::ops::ssd::runs::Run;
use danaus_runtime::cuda::{Argument, Defines, Header, Kernel, Launch, Source, Variant};
use danaus_tensor::cuda::{SCALAR, device_type};
use danaus_tensor::{Error, Result, Tensor, no_grad};
use std::sync::Arc;

const OP: &str = "causal_conv1d";
const HEADERS: &[Header] = &[SCALAR];
static SOURCE: Source = Source::new("conv1d.cuh", include_str!("conv1d.cuh"), HEADERS);

/// Parts of the tokens in sums over all of them.
const PARTS: usize = 64;

/// The kernel's `Shape`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    tokens: i64,
    seqlen: i64,
    runs: i64,
    channels: i64,
}

// SAFETY: plain numbers in the order of the kernel's struct.
unsafe impl Argument for Shape {}

/// A checked call; `x` is contiguous `[batch, seqlen, channels]`, the others are in the wide dtype.
pub(super) struct Conv<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub initial: Option<&'a Tensor>,
    pub runs: &'a [Run],
    pub silu: bool,
    /// Whether runs are the rows of the batch.
    pub even: bool,
}

/// Gradients of x, weight, bias and initial states.
pub(super) struct Gradients {
    pub x: Tensor,
    pub weight: Tensor,
    pub bias: Tensor,
    pub initial: Option<Tensor>,
}

/// Tables on the device and the launch arguments that all kernels share.
struct Tables {
    shape: Shape,
    /// Start, length, initial and last state of each run.
    runs: Tensor,
    /// Run of each token, unless runs are even.
    run_of: Option<Tensor>,
    defines: Defines,
}

fn defines(kind: &str, width: usize, silu: bool) -> Defines {
    Defines::new().set("ELEMENT", kind).set("TAPS", width).set("WITH_SILU", u8::from(silu))
}

fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), Tensor::device_address)
}

/// One thread for each of `count`.
fn threads(count: usize) -> Result<Launch> {
    let blocks = i32::try_from(count.div_ceil(256))
        .map_err(|_| Error::not_on_cuda(OP, "a tensor of more than 2^39 elements"))?;
    Ok(Launch::linear(blocks as u32, 256))
}

impl Conv<'_> {
    fn tables(&self) -> Result<Tables> {
        let device = self.x.device();
        let &[batch, seqlen, channels] = self.x.dims() else {
            return Err(Error::internal("causal_conv1d on a tensor without three dimensions"));
        };
        let state = |index: Option<usize>| index.map_or(-1, |index| index as i64);
        let rows = self.runs.iter();
        let rows =
            rows.flat_map(|r| [r.start as i64, r.len as i64, state(r.initial), state(r.last)]);
        let runs = list(&rows.collect::<Vec<i64>>(), &device)?;
        let run_of = match self.even {
            true => None,
            false => {
                let mut numbers = vec![0i32; batch * seqlen];
                for (index, run) in self.runs.iter().enumerate() {
                    numbers[run.start..run.start + run.len].fill(index as i32);
                }
                Some(list(&numbers, &device)?)
            }
        };
        let shape = Shape {
            tokens: (batch * seqlen) as i64,
            seqlen: seqlen.max(1) as i64,
            runs: self.runs.len() as i64,
            channels: channels as i64,
        };
        let width = self.weight.dims()[1];
        let defines = defines(device_type(OP, self.x.dtype())?, width, self.silu);
        Ok(Tables { shape, runs, run_of, defines })
    }

    fn kernel(&self, tables: &Tables, entry: &str) -> Result<Arc<Kernel>> {
        Ok(self.x.gpu()?.kernel(&SOURCE, entry, &tables.defines)?)
    }

    /// Whether rows are whole pieces of 16 bytes.
    fn in_pieces(&self, addresses: [u64; 2]) -> bool {
        let row = self.weight.dims()[0] * self.x.dtype().size();
        row.is_multiple_of(16) && addresses.iter().all(|at| at.is_multiple_of(16))
    }

    /// A block for 32 pieces of 4 tiles of 8 tokens.
    fn tiles(&self) -> Result<Launch> {
        let channels = self.weight.dims()[0];
        let pieces = channels * self.x.dtype().size() / 16;
        let tokens = self.x.elem_count() / channels;
        Ok(Launch {
            block: [128, 1, 1],
            ..threads(256 * pieces.div_ceil(32) * tokens.div_ceil(32))?
        })
    }

    /// Elements of the states of all runs.
    fn state_elements(&self) -> usize {
        self.runs.len() * self.weight.dims()[0] * (self.weight.dims()[1] - 1)
    }

    /// Writes `y` and the final states.
    pub fn forward(&self, y: &mut Tensor, states: &mut Tensor) -> Result<()> {
        let tables = self.tables()?;
        let (x, weight) = (self.x.device_address()?, self.weight.device_address()?);
        let (bias, initial) = (optional(self.bias)?, optional(self.initial)?);
        let (runs, run_of) = (tables.runs.device_address()?, optional(tables.run_of.as_ref())?);
        let count = y.elem_count();
        if count > 0 {
            let to = y.device_address_mut()?;
            let arguments: [&dyn Argument; 8] =
                [&x, &weight, &bias, &initial, &runs, &run_of, &to, &tables.shape];
            // SAFETY: all tensors have the shapes that were checked; runs lie inside the tokens and
            // states inside theirs; the output is fresh.
            unsafe {
                match self.in_pieces([x, to]) {
                    true => {
                        self.kernel(&tables, "forward_tiles")?.launch(&self.tiles()?, &arguments)?
                    }
                    false => {
                        self.kernel(&tables, "forward")?.launch(&threads(count)?, &arguments)?
                    }
                }
            };
        }
        *states = Tensor::zeros(states.shape(), states.dtype(), &states.device())?;
        let count = self.state_elements();
        if count > 0 {
            let to = states.device_address_mut()?;
            let arguments: [&dyn Argument; 5] = [&x, &initial, &runs, &to, &tables.shape];
            // SAFETY: as above.
            unsafe { self.kernel(&tables, "final_states")?.launch(&threads(count)?, &arguments)? };
        }
        Ok(())
    }

    /// Gradients from the cotangents of `y` and the final states, both contiguous.
    pub fn backward(&self, dy: &Tensor, dlast: Option<&Tensor>) -> Result<Gradients> {
        let tables = self.tables()?;
        let (device, wide) = (self.x.device(), self.weight.dtype());
        let (channels, width) = (self.weight.dims()[0], self.weight.dims()[1]);
        let count = self.x.elem_count();
        let mut dx = Tensor::empty(self.x.shape(), self.x.dtype(), &device)?;
        let zeros = |like: &Tensor| Tensor::zeros(like.shape(), like.dtype(), &device);
        let mut initial = self.initial.map(zeros).transpose()?;
        if count == 0 {
            let (weight, bias) = (zeros(self.weight)?, Tensor::zeros([channels], wide, &device)?);
            return Ok(Gradients { x: dx, weight, bias, initial });
        }
        let mut g = Tensor::empty(self.x.shape(), wide, &device)?;
        let (x, weight) = (self.x.device_address()?, self.weight.device_address()?);
        let (bias, from) = (optional(self.bias)?, optional(self.initial)?);
        let (runs, run_of) = (tables.runs.device_address()?, optional(tables.run_of.as_ref())?);
        let (dy, dlast, slopes) = (dy.device_address()?, optional(dlast)?, g.device_address_mut()?);
        let shape = &tables.shape;
        let per_token = threads(count)?;
        // SAFETY: as in `forward`.
        unsafe {
            let arguments: [&dyn Argument; 9] =
                [&x, &weight, &bias, &from, &runs, &run_of, &dy, &slopes, shape];
            self.kernel(&tables, "slope")?.launch(&per_token, &arguments)?;
            let to = dx.device_address_mut()?;
            let arguments: [&dyn Argument; 7] =
                [&slopes, &weight, &dlast, &runs, &run_of, &to, shape];
            self.kernel(&tables, "backward_x")?.launch(&per_token, &arguments)?;
            if let Some(initial) = initial.as_mut().filter(|_| self.state_elements() > 0) {
                let to = initial.device_address_mut()?;
                let arguments: [&dyn Argument; 6] = [&slopes, &weight, &dlast, &runs, &to, shape];
                let launch = threads(self.state_elements())?;
                self.kernel(&tables, "backward_states")?.launch(&launch, &arguments)?;
            }
        }
        let tokens = count / channels;
        let per_part = tokens.div_ceil(PARTS).max(8);
        let parts = tokens.div_ceil(per_part);
        let mut sums = Tensor::empty([parts, channels, width + 1], wide, &device)?;
        let (to, each) = (sums.device_address_mut()?, per_part as i64);
        let mut launch = Launch::linear(channels.div_ceil(32) as u32, 256);
        launch.grid[1] = parts as u32;
        let arguments: [&dyn Argument; 8] = [&x, &from, &slopes, &runs, &run_of, &to, &each, shape];
        // SAFETY: as above; the sums have one place for each part, channel and tap.
        unsafe { self.kernel(&tables, "backward_weight")?.launch(&launch, &arguments)? };
        no_grad(|| {
            let sums = sums.sum(0)?;
            let weight = sums.narrow(1, 0, width)?.contiguous()?;
            let bias = sums.select(1, width)?.contiguous()?;
            Ok(Gradients { x: dx, weight, bias, initial })
        })
    }
}

/// A decoding step on contiguous arrays in the wide dtype: `x` and `y` `[batch, channels, seqlen]`, states
/// `[batch, channels, state_len]`.
pub(super) fn update(
    [x, state, weight]: [&Tensor; 3],
    bias: Option<&Tensor>,
    positions: Option<&Tensor>,
    silu: bool,
    [y, next]: [&mut Tensor; 2],
) -> Result<()> {
    let &[batch, channels, seqlen] = x.dims() else {
        return Err(Error::internal("an update of a tensor without three dimensions"));
    };
    let rows = batch * channels;
    if rows == 0 {
        return Ok(());
    }
    let state_len = state.dims()[2];
    let sizes = [rows, channels, seqlen, state_len].map(|size| size as i64);
    let [rows_at, channels, seqlen, state_len] = &sizes;
    let (from, old, weights) =
        (x.device_address()?, state.device_address()?, weight.device_address()?);
    let (bias, positions) = (optional(bias)?, optional(positions)?);
    let (to, next) = (y.device_address_mut()?, next.device_address_mut()?);
    let arguments: [&dyn Argument; 11] = [
        &from, &old, &weights, &bias, &positions, &to, &next, rows_at, channels, seqlen, state_len,
    ];
    let defines = defines(device_type(OP, x.dtype())?, weight.dims()[1], silu);
    let kernel = x.gpu()?.kernel(&SOURCE, "update", &defines)?;
    // SAFETY: shapes were checked; outputs are fresh.
    unsafe { kernel.launch(&threads(rows)?, &arguments)? };
    Ok(())
}

/// Whether runs are the rows of a batch of equal lengths, each with its own state.
pub(super) fn even(runs: &[Run], seqlen: usize) -> bool {
    runs.iter().enumerate().all(|(index, run)| run.start == index * seqlen && run.len == seqlen)
}

/// The kernels that are shipped: the widths that models use.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kind in ["float", "bf16", "double"] {
        for (width, silu) in [(4, true), (4, false), (3, true), (2, true)] {
            all.push(Variant::new(SOURCE.clone(), defines(kind, width, silu)));
        }
    }
    all
}

//! The kernels' arguments, field by field as in the `.cuh` files.

use danaus_runtime::cuda::Argument;

/// `Problem` of `problem.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub runs: u64,
    pub chunk_run: u64,
    pub tokens: i64,
    pub seqlen: i64,
    pub heads: i32,
    pub groups: i32,
    pub head_dim: i32,
    pub d_state: i32,
    pub run_count: i32,
    pub chunk_count: i32,
    pub chunk: i32,
}

/// `StepOptions` of `step_size.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    pub low: f64,
    pub high: f64,
    pub softplus: i32,
    pub core: i32,
}

/// `Arrays` of `recurrent.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecurrentArrays {
    pub x: u64,
    pub b: u64,
    pub c: u64,
    pub z: u64,
    pub dt: u64,
    pub a: u64,
    pub d: u64,
    pub bias: u64,
    pub initial: u64,
    pub y: u64,
    pub last: u64,
    pub x_row: i64,
    pub b_row: i64,
    pub c_row: i64,
    pub z_row: i64,
}

/// `SweepParams` of `sweep.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    pub problem: Problem,
    pub steps: u64,
    pub entering: u64,
    pub first: u64,
    pub leaving: u64,
    pub decays: u64,
    pub last: u64,
    pub images: u64,
    pub y: u64,
    pub z: u64,
    pub d: u64,
    pub z_row: i64,
    pub segments: i32,
}

/// `GradientParams` of `gradient.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    pub problem: Problem,
    pub steps: u64,
    pub states: u64,
    pub dstates: u64,
    pub dsteps: u64,
    pub dx: u64,
    pub d: u64,
    pub dd: u64,
    pub db: u64,
    pub dc: u64,
    pub shares: i32,
}

/// `Arrays` of `generic.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GenericArrays {
    pub x: u64,
    pub b: u64,
    pub c: u64,
    pub dy: u64,
    pub d: u64,
    pub steps: u64,
    pub states: u64,
    pub dstates: u64,
    pub dx: u64,
    pub dsteps: u64,
    pub db: u64,
    pub dc: u64,
    pub dd: u64,
    pub x_row: i64,
    pub b_row: i64,
    pub c_row: i64,
    pub dy_row: i64,
}

// SAFETY: plain fields in the order of the kernel's struct; padding behind the last field is that of
// the C++ struct and never read.
unsafe impl Argument for Problem {}
// SAFETY: as above.
unsafe impl Argument for StepOptions {}
// SAFETY: as above.
unsafe impl Argument for RecurrentArrays {}
// SAFETY: as above.
unsafe impl Argument for Sweep {}
// SAFETY: as above.
unsafe impl Argument for Gradient {}
// SAFETY: as above.
unsafe impl Argument for GenericArrays {}

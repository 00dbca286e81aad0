//! The kernels' arguments, field by field as in `params.cuh`.

use danaus_runtime::cuda::Argument;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub cu_seqlens_q: u64,
    pub cu_seqlens_k: u64,
    pub batch: i32,
    pub heads: i32,
    pub group: i32,
    pub q_len: i32,
    pub k_len: i32,
    pub total_q: i32,
    pub window_left: i32,
    pub window_right: i32,
    pub score_factor: f32,
    pub exponent_factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub ticket: u64,
    pub tiles: i32,
    pub tiles_of_head: i32,
    pub section: i32,
}

/// Rows for ordinary access; strides in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub data: u64,
    pub row_stride: i64,
    pub head_stride: i64,
    pub batch_stride: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ForwardParams {
    pub problem: Problem,
    pub schedule: Schedule,
    pub lse: u64,
    pub out: Rows,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackwardParams {
    pub problem: Problem,
    pub schedule: Schedule,
    pub row_blocks: i32,
    pub softmax_scale: f32,
    pub turns: u64,
    pub log_sum_exp_2: u64,
    pub delta: u64,
    pub dq_sum: u64,
    pub lse: u64,
    pub grad_lse: u64,
    pub out: Rows,
    pub grad_out: Rows,
    pub dq: Rows,
    pub dk: Rows,
    pub dv: Rows,
}

/// Of the kernels for head dims beyond 128.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WideParams {
    pub base: BackwardParams,
    pub query_schedule: Schedule,
}

// SAFETY: plain fields in the order of the kernel's struct.
unsafe impl Argument for Rows {}
// SAFETY: plain fields in the order of the kernel's struct; the padding after `Schedule::section` is
// that of the C++ struct and never read.
unsafe impl Argument for ForwardParams {}
// SAFETY: as above.
unsafe impl Argument for BackwardParams {}
// SAFETY: as above.
unsafe impl Argument for WideParams {}

//! What the machine offers, and nothing of tensors: worker threads, a caching buffer pool, run-time
//! SIMD dispatch, memory accounting and the few file operations that differ between systems.
//!
//! * [`threads`]: the one compute pool. Work is split by shape, never by thread count, so that
//!   results have the same bits on any number of threads.
//! * [`pool`]: 64-byte aligned buffers that are kept warm after use. On this kind of machine page
//!   faults, not arithmetic, decide how fast a large elementwise operation runs.
//! * [`simd`]: one small vector trait with AVX-512, AVX2 and portable implementations, chosen once
//!   per process.
//! * [`memory`]: how much memory is there, so that a run can be refused before it fails.
//! * [`cuda`]: NVIDIA GPUs, loaded when first asked for.
//! * [`philox`]: random numbers as a pure function of (seed, stream, element).
//! * [`fs`]: atomic replacement of files, memory maps.
//! * [`process`]: what happens when the reader of the output goes.

pub mod cuda;
pub mod fs;
pub mod memory;
pub mod philox;
pub mod pool;
pub mod process;
pub mod simd;
pub mod threads;

//! NVIDIA GPUs: device handles, memory, kernels compiled at run time, launches, graphs, matrix
//! products of the vendor's library. Nothing of tensors.
//!
//! The driver, NVRTC and cuBLASLt are loaded when first asked for, never linked: one binary runs with
//! and without a GPU, and a machine without one notices nothing until a GPU is named. What is missing
//! is an [`Error`] that says how to get it.
//!
//! | file | holds |
//! | --- | --- |
//! | [`gpu`] | [`Gpu`]: one device, its context, its compute stream, its limits |
//! | [`memory`] | [`DeviceBuffer`], [`PinnedBuffer`], copies, statistics |
//! | [`compile`] | [`Source`] to cubin, with a cache on disk; what a kernel needs of the chip |
//! | [`launch`] | [`Kernel`], [`Launch`], typed arguments, checks before a launch |
//! | [`fault`] | bad values that only a kernel sees, such as indices |
//! | [`tensor_map`] | descriptors of the bulk copy engine |
//! | [`graph`] | capture and replay with memory of its own |
//! | [`event`] | time on the GPU's clock |
//! | [`blas`] | cuBLASLt |
//!
//! # Contract
//! * **One compute stream a device.** Every copy, launch and allocation is ordered on it; nothing here
//!   waits for the GPU except [`Gpu::synchronize`] and copies to the host.
//! * **Calls come from any thread.** Each entry binds the context to the calling thread first.
//! * **Kernels are cubins for the exact chip** (`sm_90a`), never PTX: a driver older than the compiler
//!   refuses newer PTX. They are looked up in a folder of prebuilt ones (`DANAUS_KERNELS`), then in the
//!   cache (`DANAUS_CACHE`, else the user's cache folder), then compiled.
//! * **A launch is checked on the host first**: sizes against the chip's limits, arguments against the
//!   kernel's own list. What the chip reports later names the kernel that was launched last.

pub mod blas;
pub mod compile;
pub mod error;
pub mod event;
pub mod fault;
pub mod gpu;
pub mod graph;
pub mod launch;
pub mod memory;
pub mod tensor_map;

pub use compile::{Arch, Defines, Header, Resources, Source, Variant};
pub use error::{Error, Result};
pub use event::{Event, time};
pub use gpu::{Gpu, Limits};
pub use graph::Graph;
pub use launch::{Argument, Kernel, Launch};
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use tensor_map::{Swizzle, TensorMap, TensorMapSpec};

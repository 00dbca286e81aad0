//! The operators of the engine.
//!
//! Each folder under [`ops`] is one operator: its contract (shapes, equation, source), a plain
//! reference that is generic over the number type and serves as the f64 path and the oracle, and the
//! SIMD kernels, which take slices and plain parameter structs and know nothing of tensors.

mod device;
mod hook;
pub mod lists;
pub mod ops;
pub mod recording;
mod rows;
mod vector;

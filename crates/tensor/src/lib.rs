//! Tensors, the tape and the elementary operators.
//!
//! A [`Tensor`] is an immutable, strided view of shared storage. Operators implement [`Op`]; calling
//! one through [`apply`] records it on the tape when an input is tracked, and the tape is the only
//! source of gradients. Operators that belong to a method of the field (attention, scans, norms)
//! live in the `kernel` room; here is what every tensor library has, and the seams.
//!
//! | module | holds |
//! | --- | --- |
//! | [`dtype`], [`shape`], [`layout`], [`storage`] | what a tensor is made of |
//! | [`cuda`] | tensors on a GPU |
//! | [`tape`] | the [`Op`] seam, recording, backward, checkpointing |
//! | [`ops`] | elementary operators, one file a family |
//! | [`gemm`] | the matrix product engine under `matmul` and every fused linear layer |
//! | [`param`] | named parameters and the builder that makes or loads them |
//! | [`registry`] | descriptions of operators, for the operator runner |
//! | [`safetensors`] | reading and writing tensor files |
//!
//! ```
//! use danaus_tensor::{Device, Tensor};
//!
//! let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3], &Device::Cpu)?.tracked();
//! let loss = x.mul(&x)?.sum_all()?;
//! let gradients = loss.backward()?;
//! assert_eq!(gradients.get(&x).unwrap().to_vec::<f32>()?, vec![2.0, 4.0, 6.0]);
//! # Ok::<(), danaus_tensor::Error>(())
//! ```

pub mod cuda;
pub mod device;
pub mod dtype;
pub mod error;
pub mod fp8;
pub mod gemm;
pub mod layout;
pub mod ops;
pub mod param;
pub mod registry;
pub mod rng;
pub mod safetensors;
pub mod shape;
pub mod storage;
pub mod tape;
mod tensor;

pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use layout::Layout;
pub use param::{Init, MadeMatrix, Param, ParamBuilder, ParamSet, update_all};
pub use shape::Shape;
pub use tape::{
    Backward, Gradients, Inputs, Level, Meta, Op, Saves, apply, asked_level, backward_with,
    checkpoint, is_recording, no_grad, with_level,
};
pub use tensor::{Tensor, TensorId, View};

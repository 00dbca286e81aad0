//! Danaus: one engine for efficient sequence models.
//!
//! This crate is the one to depend on. It re-exports the rooms of the engine under short names, joins
//! their operator lists ([`registry`]) and keeps the table of implemented systems ([`systems`]).
//!
//! ```
//! use danaus::prelude::*;
//!
//! let x = Tensor::from_vec(vec![1.0f32, 2.0], [2], &Device::Cpu)?.tracked();
//! let loss = x.mul(&x)?.sum_all()?;
//! assert_eq!(loss.backward()?.get(&x).unwrap().to_vec::<f32>()?, vec![2.0, 4.0]);
//! # Ok::<(), danaus::tensor::Error>(())
//! ```

pub mod kernels;
pub mod op_files;
pub mod systems;

pub use danaus_bench as bench;
pub use danaus_kernel as kernel;
pub use danaus_matrix as matrix;
pub use danaus_model as model;
pub use danaus_runtime as runtime;
pub use danaus_tensor as tensor;
pub use danaus_text as text;
pub use danaus_train as train;

use danaus_tensor::registry::Registry;

/// What most programs need.
pub mod prelude {
    pub use danaus_tensor::{DType, Device, Gradients, Param, ParamBuilder, Tensor, no_grad};
}

/// Every operator of every room, by name.
///
/// # Errors
/// An internal error if two rooms use the same name.
pub fn registry() -> danaus_tensor::Result<Registry> {
    let rooms = [danaus_kernel::ops::SPECS, danaus_matrix::SPECS, danaus_model::SPECS];
    let mut lists = vec![danaus_tensor::ops::SPECS];
    lists.extend(rooms.into_iter().flatten().copied());
    Registry::join(&lists)
}

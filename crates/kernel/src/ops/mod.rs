//! The list of operators. Each folder holds one: contract, reference, kernels, tests.

pub mod attention;

use danaus_tensor::registry::OpSpec;

/// Every operator of this room, one list per folder.
pub const SPECS: &[&[OpSpec]] = &[attention::SPECS];

//! The list of operators. Each folder holds one: contract, reference, kernels, tests.

pub mod attention;

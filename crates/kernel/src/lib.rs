//! Fused operators: one folder per operation under [`ops`], with its contract, its plain reference
//! and its kernels side by side.

pub mod ops;

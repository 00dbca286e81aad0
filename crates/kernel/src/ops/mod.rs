//! One folder for each operator.

pub mod activation;

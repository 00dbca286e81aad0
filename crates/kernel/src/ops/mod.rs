//! One folder for each operator.

pub mod activation;
pub mod norm;
pub mod softmax;

//! One folder for each operator.

pub mod activation;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod norm;
pub mod rotary;
pub mod softmax;

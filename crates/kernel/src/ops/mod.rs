//! One folder for each operator: contract, reference, kernels, tests.

pub mod activation;
pub mod attention;
pub mod block_sparse;
pub mod conv1d;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod kronecker_sparse;
pub mod krylov;
pub mod linear;
pub mod mamba2_step;
pub mod norm;
pub mod optimizer;
pub mod quantized;
pub mod rms_norm_gated;
pub mod rotary;
pub mod selective_scan;
pub mod softmax;
pub mod ssd;
pub mod toeplitz;

/// Kernels of every folder that `danaus kernels build` compiles.
pub fn kernels() -> Vec<danaus_runtime::cuda::Variant> {
    let families = [
        attention::cuda::variants(),
        conv1d::cuda::variants(),
        cross_entropy::cuda::variants(),
        dropout::cuda::variants(),
        linear::few_rows::variants(),
        mamba2_step::cuda::variants(),
        norm::cuda::variants(),
        optimizer::variants(),
        rms_norm_gated::cuda::variants(),
        rotary::cuda::variants(),
        selective_scan::cuda::variants(),
        softmax::cuda::variants(),
        ssd::cuda::variants(),
        crate::recording::variants(),
    ];
    families.into_iter().flatten().collect()
}

/// The operators of every folder, for the registry.
pub const SPECS: &[&[danaus_tensor::registry::OpSpec]] = &[
    activation::SPECS,
    attention::SPECS,
    block_sparse::SPECS,
    conv1d::SPECS,
    cross_entropy::SPECS,
    cross_entropy::linear::SPECS,
    dropout::SPECS,
    embedding::SPECS,
    kronecker_sparse::SPECS,
    krylov::SPECS,
    linear::SPECS,
    mamba2_step::SPECS,
    norm::SPECS,
    quantized::SPECS,
    rms_norm_gated::SPECS,
    rotary::SPECS,
    selective_scan::SPECS,
    softmax::SPECS,
    ssd::SPECS,
    toeplitz::SPECS,
];

//! The published systems that Danaus implements, and how far each has come.

use std::fmt;

/// How far a system has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing yet.
    Planned,
    /// Part of it works, as the row says.
    Partial,
    /// Complete, with its headline effect shown.
    Works,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Planned => "planned",
            Status::Partial => "partial",
            Status::Works => "works",
        })
    }
}

/// One published system.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// Number in the table of the architecture.
    pub number: u8,
    /// Name.
    pub name: &'static str,
    /// Where it lives.
    pub room: &'static str,
    /// How far it has come.
    pub status: Status,
    /// A command that shows what works, empty while nothing does.
    pub command: &'static str,
    /// What works and what is missing.
    pub note: &'static str,
}

const fn planned(number: u8, name: &'static str, room: &'static str) -> System {
    System { number, name, room, status: Status::Planned, command: "", note: "" }
}

const fn partial(
    number: u8,
    name: &'static str,
    room: &'static str,
    command: &'static str,
    note: &'static str,
) -> System {
    System { number, name, room, status: Status::Partial, command, note }
}

/// All systems in the order of the architecture's table.
pub const SYSTEMS: [System; 39] = [
    partial(
        1,
        "FlashAttention",
        "kernel/ops/attention",
        "danaus bench attention",
        "exact tiled attention on the CPU and on GPUs, forward and backward, every option of the operator",
    ),
    partial(
        2,
        "FlashAttention-2",
        "kernel/ops/attention",
        "danaus bench attention",
        "the feature contract on the CPU and on GPUs, decoding with split keys and pages; ahead of cuDNN on Hopper",
    ),
    partial(
        3,
        "FlashAttention-3",
        "kernel/ops/attention",
        "danaus bench attention --device cuda",
        "warp-specialised bf16, f16 and FP8 kernels for Hopper, deterministic backward to head dim 256; modifiers planned",
    ),
    planned(4, "Scatterbrain", "matrix"),
    partial(
        5,
        "Pixelated Butterfly",
        "kernel/ops/block_sparse, matrix",
        "danaus compress M --format pixelfly --budget 0.5 --out M-half",
        "flat butterfly layouts, block-sparse products with gradients, weights with low rank and their projection, masks of attention, on the CPU; figures of training and GPU planned",
    ),
    planned(6, "MONGOOSE", "kernel/ops/lsh, train"),
    planned(7, "HiPPO", "matrix, model"),
    planned(8, "LSSL", "matrix, model"),
    planned(9, "S4ND", "matrix, model"),
    planned(10, "SpaceTime", "matrix, model"),
    planned(11, "H3 and FlashConv", "kernel/ops, matrix, model"),
    partial(
        12,
        "Mamba-2 / SSD",
        "kernel/ops/ssd, matrix, model",
        "danaus bench ssd",
        "SSD, convolution, gated norm, blocks, Mamba-1 with its scan, checkpoints, recall tasks, training and generation on the CPU and on GPUs",
    ),
    planned(13, "Hydra", "matrix, model"),
    planned(14, "Caduceus", "matrix, model"),
    planned(15, "Hyena", "kernel/ops/fftconv, matrix"),
    planned(16, "Long convolutions and FlashButterfly", "kernel/ops/fftconv, matrix"),
    planned(17, "Transform Once", "kernel/ops/fftconv, matrix"),
    partial(
        18,
        "Butterfly matrices",
        "kernel/ops/kronecker_sparse, matrix",
        "danaus factor dft --n 1024",
        "products with gradients, exact transforms, recovery of fast algorithms in closed form, learning by gradients to 16 points, weights on the CPU; learning at larger sizes and GPU planned",
    ),
    partial(
        19,
        "Kaleidoscope matrices",
        "matrix",
        "danaus selftest --filter 19-kaleidoscope",
        "products with expansion, any permutation as one, named maps, weights on the CPU; fitting, latent permutations and GPU planned",
    ),
    partial(
        20,
        "Monarch matrices",
        "kernel/ops/kronecker_sparse, matrix",
        "danaus compress M --format monarch --budget 0.5 --out M-half",
        "products with gradients, nearest Monarch matrix with exact error, checkpoints compressed within a budget and made dense again, factorisation into two, DFT of any composite size, weights on the CPU; GPU planned",
    ),
    partial(
        21,
        "Low displacement rank",
        "kernel/ops/toeplitz, matrix",
        "danaus analyze weights.safetensors",
        "every class with gradients (subdiagonal, tridiagonal, corners, Toeplitz-, Hankel-, Vandermonde-like), stable where ranges are wide, displacement ranks of any matrix, weights on the CPU; figures of training and GPU planned",
    ),
    planned(22, "ButterflyFlow", "matrix, train"),
    planned(23, "XD-operations", "matrix, train"),
    planned(24, "Medusa", "serve, train"),
    planned(25, "BitDelta", "serve, train"),
    planned(26, "Deja Vu", "serve, train"),
    planned(27, "Ladder-Residual", "model, serve"),
    planned(28, "Mamba in the Llama", "model, train"),
    partial(
        29,
        "StarCoder",
        "text, model, train, data",
        "danaus quickstart",
        "fill-in-the-middle in training and generation, code tokenizer, GPTBigCode checkpoints; curation planned",
    ),
    planned(30, "RedPajama data", "data"),
    planned(31, "Decentralised training", "cluster, train"),
    planned(32, "AQ-SGD", "cluster, train"),
    planned(33, "Catformer", "model, train"),
    planned(34, "Distillation as semiparametric inference", "train"),
    planned(35, "Kernel theory of augmentation", "train"),
    planned(36, "Compressed word embeddings", "matrix, train"),
    planned(37, "Gaussian quadrature features", "matrix"),
    planned(38, "Adaptive hashing for counting", "prob"),
    planned(39, "ADAPART permanents", "prob"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_and_honest() {
        for (index, system) in SYSTEMS.iter().enumerate() {
            assert_eq!(usize::from(system.number), index + 1);
            assert_eq!(system.status == Status::Planned, system.command.is_empty());
        }
    }
}

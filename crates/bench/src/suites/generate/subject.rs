//! What is measured: a shape with random weights in some format, or a model from a file.

use crate::Result;
use danaus_kernel::ops::quantized::{Activations, BlockType, quantize};
use danaus_model::decoder::Compute;
use danaus_model::{Config, Decoder, Model};
use danaus_tensor::{DType, Device, Error, ParamBuilder, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names of the shapes.
pub const SHAPES: [&str; 4] = ["llama-130m", "mamba2-130m", "llama-1b", "mamba2-2.7b"];
/// Formats of weights that a shape may be given.
pub const FORMATS: &str = "f32, bf16, f16, q8_0, q4_0, q4_k";

/// Whose speed is measured.
#[derive(Clone, Debug)]
pub enum Subject {
    /// One of [`SHAPES`] with random weights stored in one of [`FORMATS`].
    Shape {
        /// Which shape.
        shape: String,
        /// How matrices are stored; everything else is f32.
        weights: String,
    },
    /// A checkpoint, as it is stored.
    File(PathBuf),
}

impl Subject {
    /// In a few words.
    pub fn label(&self) -> String {
        match self {
            Self::Shape { shape, weights } => format!("{shape} {weights}"),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// The model.
    ///
    /// # Errors
    /// When shape or format are unknown, the file is no model, or there is no memory.
    pub fn decoder(&self, compute: Compute) -> Result<Decoder> {
        match self {
            Self::Shape { shape, weights } => build(&config(shape)?, weights, compute),
            Self::File(path) => Ok(Model::load(path, compute)?.decoder),
        }
    }
}

/// A new model whose matrices are stored in a format.
fn build(config: &Config, weights: &str, compute: Compute) -> Result<Decoder> {
    let format = Format::parse(weights)?;
    if let (Format::Float(DType::F32), Device::Cpu) = (&format, compute.device) {
        return Ok(Decoder::init(config, 0, compute)?);
    }
    // Quantised below; new ones are not.
    let plain = Compute { activations: Activations::F32, ..compute };
    let fresh = Decoder::init(config, 0, plain)?;
    let mut stored = BTreeMap::new();
    for param in fresh.params().iter() {
        let tensor = param.tensor().detach();
        let stem = param.name().strip_suffix(".weight").filter(|_| tensor.rank() == 2);
        let (name, tensor) = match (stem, &format) {
            (None, _) => (param.name().to_string(), tensor),
            (Some(_), Format::Float(dtype)) => (param.name().to_string(), tensor.to_dtype(*dtype)?),
            (Some(stem), Format::Blocks(kind)) => {
                (format!("{stem}.{kind}"), quantize(&tensor, *kind)?)
            }
        };
        stored.insert(name, tensor);
    }
    let params = ParamBuilder::load(Arc::new(stored), DType::F32, compute.device);
    let params = match compute.device {
        Device::Cpu => params.as_stored(),
        // As checkpoints are loaded there.
        Device::Cuda(_) => params.matrices_as(compute.dtype),
    };
    Ok(Decoder::build(&params, config, compute)?)
}

enum Format {
    Float(DType),
    Blocks(BlockType),
}

impl Format {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "f32" => Self::Float(DType::F32),
            "bf16" => Self::Float(DType::BF16),
            "f16" => Self::Float(DType::F16),
            "q8_0" => Self::Blocks(BlockType::Q8_0),
            "q4_0" => Self::Blocks(BlockType::Q4_0),
            "q4_k" => Self::Blocks(BlockType::Q4K),
            other => return Err(Error::argument("bench", "weights", other, FORMATS).into()),
        })
    }
}

/// Every matrix of a model with the type of its blocks, if it has one.
pub(super) fn matrices(decoder: &Decoder) -> Vec<(Tensor, Option<BlockType>)> {
    let matrix = |param: &danaus_tensor::Param| {
        let tensor = param.tensor().detach();
        let suffix = param.name().rsplit('.').next().unwrap_or_default();
        let blocks = BlockType::ALL.into_iter().find(|kind| kind.name() == suffix);
        (tensor.rank() == 2).then_some((tensor, blocks))
    };
    decoder.params().iter().filter_map(matrix).collect()
}

fn config(shape: &str) -> Result<Config> {
    let text = match shape {
        "llama-130m" => {
            r#"{"vocab_size": 50288, "d_model": 768, "layers": "AAAAAAAAAAAA", "max_positions": 2048,
                "attention": {"n_heads": 12, "rope_theta": 10000.0},
                "mlp": {"kind": "swiglu", "d_ff": 2048}, "#
        }
        "mamba2-130m" => {
            r#"{"vocab_size": 50288, "d_model": 768, "layers": "MMMMMMMMMMMMMMMMMMMMMMMM",
                "max_positions": 2048, "mamba2": {"d_state": 128, "head_dim": 64}, "#
        }
        "mamba2-2.7b" => {
            r#"{"vocab_size": 50288, "d_model": 2560, "layers":
                "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM",
                "max_positions": 2048, "mamba2": {"d_state": 128, "head_dim": 64}, "#
        }
        "llama-1b" => {
            r#"{"vocab_size": 128256, "d_model": 2048, "layers": "AAAAAAAAAAAAAAAA",
                "max_positions": 2048,
                "attention": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 64, "rope_theta": 500000.0},
                "mlp": {"kind": "swiglu", "d_ff": 8192}, "#
        }
        other => {
            let valid = SHAPES.join(", ");
            return Err(danaus_tensor::Error::argument("bench", "shape", other, valid).into());
        }
    };
    let rest = r#""model_type": "danaus", "version": 1, "tied_head": true}"#;
    Ok(Config::parse(&format!("{text}{rest}"), Path::new(shape))?)
}

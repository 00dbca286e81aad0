//! Writing the model with some weights replaced.

use super::{Report, Source};
use crate::checkpoint::write_text;
use crate::config::Config;
use crate::{Error, Result};
use danaus_matrix::structured::factor::Projected;
use danaus_tensor::{DType, MadeMatrix, Tensor};
use std::path::Path;

/// The report's file inside the folder.
const REPORT_NAME: &str = "compress.json";

/// A weight and what it becomes.
pub(super) struct Replaced {
    pub made: MadeMatrix,
    pub projected: Projected,
}

/// Refuses to write over anything.
pub(super) fn refuse_existing(out: &Path) -> Result<()> {
    if out.exists() {
        let given = format!("{}, which exists", out.display());
        return Err(Error::argument("out", given, "a path where nothing lies"));
    }
    Ok(())
}

impl Source {
    /// Names of the parameters of a weight.
    pub(super) fn names_of(&self, made: &MadeMatrix) -> impl Iterator<Item = String> + use<> {
        // A bias has the weight's prefix too, so the matrix itself says what is its own.
        let params = self.matrix(made).map(|matrix| matrix.parameters()).unwrap_or_default();
        params.into_iter().map(|param| param.name().to_string())
    }
}

/// Writes our folder; matrices in `dtype`, default that of the weight that is replaced.
pub(super) fn write(
    source: &Source,
    config: &Config,
    replaced: Vec<Replaced>,
    out: &Path,
    (dtype, report): (Option<DType>, &Report),
) -> Result<()> {
    let mut tensors = (*source.tensors).clone();
    if let Some(dtype) = dtype {
        let params = source.model.decoder.params();
        for param in params.iter().filter(|param| param.decays()) {
            tensors.insert(param.name().to_string(), param.tensor().detach().to_dtype(dtype)?);
        }
    }
    for Replaced { made, projected } in replaced {
        let mut stored = DType::F32;
        for name in source.names_of(&made) {
            if let Some(old) = tensors.remove(&name) {
                stored = old.dtype();
            }
        }
        for param in projected.matrix()?.parameters() {
            // Twiddles and operators are products of many: they stay f32, as vectors do.
            let kept = if param.decays() { dtype.unwrap_or(stored) } else { DType::F32 };
            let tensor: Tensor = param.tensor().detach().to_dtype(kept)?.contiguous()?;
            tensors.insert(format!("{}.{}", made.name, param.name()), tensor);
        }
    }
    let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    source.model.write(out, config, entries)?;
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    write_text(&out.join(REPORT_NAME), &json)
}

//! What structure the matrices of a file have.

use super::container::Container;
use crate::formats::dequantized::Dequantized;
use crate::{Error, Result};
use danaus_matrix::structured::factor::{Analysis, analyze};
use danaus_tensor::param::{TensorSource, name_matches};
use danaus_tensor::{DType, Tensor};
use serde::Serialize;
use std::path::Path;

/// A matrix of a file.
#[derive(Clone, Debug, Serialize)]
pub struct MatrixReport {
    /// Its name in the file.
    pub name: String,
    /// What was found.
    #[serde(flatten)]
    pub analysis: Analysis,
}

/// Reports on the matrices of a file or folder: all 2-D tensors of numbers, or those whose name a pattern
/// fits (`*` for any one part between dots). `watch` hears how many are done, of how many, and the next.
///
/// # Errors
/// When nothing readable lies there, no matrix has such a name, or an element is not finite.
pub fn analyze_file(
    path: &Path,
    only: Option<&str>,
    watch: &mut dyn FnMut(usize, usize, &str),
) -> Result<Vec<MatrixReport>> {
    let source = Dequantized::new(Container::open(path)?.source());
    let mut names = Vec::new();
    for name in source.names() {
        let wanted = only.is_none_or(|pattern| name_matches(pattern, &name));
        if wanted && source.tensor(&name)?.is_some_and(|tensor| is_matrix(&tensor)) {
            names.push(name);
        }
    }
    if names.is_empty() {
        let given = only.unwrap_or("every tensor");
        let valid = "the name of a 2-D tensor of floating-point numbers in the file";
        return Err(Error::argument("tensor", given, valid));
    }
    let mut reports = Vec::with_capacity(names.len());
    let count = names.len();
    for (index, name) in names.into_iter().enumerate() {
        watch(index, count, &name);
        let Some(tensor) = source.tensor(&name)? else { continue };
        let analysis = analyze(&tensor).map_err(|error| Error::Checkpoint {
            path: path.to_path_buf(),
            detail: format!("tensor {name}: {error}"),
        })?;
        reports.push(MatrixReport { name, analysis });
    }
    Ok(reports)
}

fn is_matrix(tensor: &Tensor) -> bool {
    let number = matches!(tensor.dtype(), DType::F64 | DType::F32 | DType::BF16 | DType::F16);
    tensor.rank() == 2 && number && tensor.elem_count() > 0
}

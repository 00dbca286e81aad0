//! A model of structured weights as one of dense weights, for formats that know no others.

use super::Opened;
use crate::config::Config;
use crate::decoder::{Compute, Decoder};
use crate::{Error, Result};
use danaus_matrix::structured::Format;
use danaus_tensor::param::TensorSource;
use danaus_tensor::{DType, Device, ParamBuilder, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Another source's tensors; the leaves of a structured matrix `NAME` become `NAME.weight`, multiplied
/// out one matrix at a time when asked.
struct Densified {
    inner: Arc<dyn TensorSource>,
    format: Format,
    /// Stems of the structured matrices with their sizes.
    matrices: BTreeMap<String, [usize; 2]>,
    /// Names of their leaves, which are hidden here.
    leaves: BTreeSet<String>,
}

impl Densified {
    fn matrix(&self, name: &str) -> Option<(&str, [usize; 2])> {
        let stem = name.strip_suffix(".weight")?;
        self.matrices.get_key_value(stem).map(|(stem, size)| (stem.as_str(), *size))
    }
}

impl TensorSource for Densified {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some((stem, size)) = self.matrix(name) else {
            return if self.leaves.contains(name) { Ok(None) } else { self.inner.tensor(name) };
        };
        let params = ParamBuilder::load(self.inner.clone(), DType::F32, Device::Cpu).pp(stem);
        Ok(Some(self.format.build(&params, size, 1.0)?.to_dense()?.detach()))
    }

    fn contains(&self, name: &str) -> danaus_tensor::Result<bool> {
        match self.matrix(name) {
            Some(_) => Ok(true),
            None => Ok(!self.leaves.contains(name) && self.inner.contains(name)?),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.retain(|name| !self.leaves.contains(name));
        names.extend(self.matrices.keys().map(|stem| format!("{stem}.weight")));
        names
    }
}

impl Opened {
    /// The same function with dense weights, and the names of the matrices that were structured; each
    /// is multiplied out when it is read.
    ///
    /// # Errors
    /// When a matrix is missing from the file in either form; it is named.
    pub fn densified(self) -> Result<(Self, Vec<String>)> {
        let format = self.config().weights;
        if format == Format::Dense {
            return Ok((self, Vec::new()));
        }
        let config = Config { weights: Format::Dense, ..self.config().clone() };
        let outline = ParamBuilder::outline(DType::F32, Device::Cpu);
        let dense = Decoder::build(&outline, &config, Compute::default())?;
        let inner = self.tensors();
        let stored = inner.names();
        let (mut matrices, mut leaves) = (BTreeMap::new(), BTreeSet::new());
        for param in dense.params().iter() {
            let (name, tensor) = (param.name(), param.tensor());
            let (Some(stem), &[rows, cols]) = (name.strip_suffix(".weight"), tensor.dims()) else {
                continue;
            };
            if inner.contains(name)? {
                continue;
            }
            let prefix = format!("{stem}.");
            let own: Vec<String> =
                stored.iter().filter(|name| is_leaf(&prefix, name)).cloned().collect();
            if own.is_empty() {
                let given = format!("{stem}, which is not in the file");
                let valid = format!("a matrix in the format {}", String::from(format));
                return Err(Error::argument("tensor", given, valid));
            }
            leaves.extend(own);
            matrices.insert(stem.to_string(), [rows, cols]);
        }
        let names = matrices.keys().cloned().collect();
        let dense = Arc::new(Densified { inner, format, matrices, leaves });
        Ok((self.replaced(config, dense), names))
    }
}

/// Whether a tensor is a part of the matrix: directly under its name, and no bias.
fn is_leaf(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|leaf| !leaf.contains('.') && leaf != "bias")
}

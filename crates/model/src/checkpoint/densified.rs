//! A model of structured weights as one of dense weights, for formats that know no others.

use super::Opened;
use crate::config::Config;
use crate::decoder::{Compute, Decoder};
use crate::{Error, Result};
use danaus_matrix::structured::Format;
use danaus_tensor::param::TensorSource;
use danaus_tensor::{DType, Device, MadeMatrix, ParamBuilder, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Another source's tensors; the leaves of a structured matrix `NAME` become `NAME.weight`, multiplied
/// out one matrix at a time when asked.
struct Densified {
    inner: Arc<dyn TensorSource>,
    /// Sizes and formats of the structured matrices, by name without the last part.
    matrices: BTreeMap<String, ([usize; 2], Format)>,
    /// Names of their leaves, which are hidden here.
    leaves: BTreeSet<String>,
}

impl Densified {
    fn matrix<'a>(&self, name: &'a str) -> Option<(&'a str, [usize; 2], Format)> {
        let stem = name.strip_suffix(".weight")?;
        self.matrices.get(stem).map(|(size, format)| (stem, *size, *format))
    }
}

impl TensorSource for Densified {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some((stem, size, format)) = self.matrix(name) else {
            return if self.leaves.contains(name) { Ok(None) } else { self.inner.tensor(name) };
        };
        let params = ParamBuilder::load(self.inner.clone(), DType::F32, Device::Cpu).pp(stem);
        Ok(Some(format.build(&params, size, 1.0)?.to_dense()?.detach()))
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
        let config = self.config();
        if config.weights == Format::Dense && config.weight_overrides.is_empty() {
            return Ok((self, Vec::new()));
        }
        let outline = ParamBuilder::outline(DType::F32, Device::Cpu);
        let structured = Decoder::build(&outline, config, Compute::default())?;
        let dense =
            Config { weights: Format::Dense, weight_overrides: BTreeMap::new(), ..config.clone() };
        let inner = self.tensors();
        let stored = inner.names();
        let (mut matrices, mut leaves) = (BTreeMap::new(), BTreeSet::new());
        for MadeMatrix { name, shape, format } in structured.matrices() {
            let kind = Format::try_from(format.clone())?;
            if kind == Format::Dense {
                continue;
            }
            let prefix = format!("{name}.");
            let own: Vec<String> =
                stored.iter().filter(|name| is_leaf(&prefix, name)).cloned().collect();
            if own.is_empty() {
                let given = format!("{name}, which is not in the file");
                return Err(Error::argument(
                    "tensor",
                    given,
                    format!("a matrix in the format {format}"),
                ));
            }
            leaves.extend(own);
            matrices.insert(name.clone(), (*shape, kind));
        }
        let names = matrices.keys().cloned().collect();
        let tensors = Arc::new(Densified { inner, matrices, leaves });
        Ok((self.replaced(dense, tensors), names))
    }
}

/// Whether a tensor is a part of the matrix: directly under its name, and no bias.
fn is_leaf(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|leaf| !leaf.contains('.') && leaf != "bias")
}

//! Golden files of the repository: `tests/golden/<NN-name>/<case>.safetensors`.

use danaus_tensor::{DType, Tensor, safetensors::TensorFile};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The tensors of one golden case.
pub struct Golden {
    case: String,
    tensors: BTreeMap<String, Tensor>,
}

/// Loads `tests/golden/<system>/<case>.safetensors`.
pub fn golden(system: &str, case: &str) -> Golden {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let path = root.join(system).join(format!("{case}.safetensors"));
    let file = TensorFile::open(&path).unwrap_or_else(|error| panic!("{error}"));
    let tensors = file.tensors().unwrap_or_else(|error| panic!("{error}"));
    Golden { case: format!("{system}/{case}"), tensors }
}

impl Golden {
    /// The tensor of that name; fails listing the names there are.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| {
            panic!("{} has no {name}; it has {:?}", self.case, self.tensors.keys())
        })
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor of that name in another dtype.
    pub fn get_as(&self, name: &str, dtype: DType) -> Tensor {
        self.get(name).to_dtype(dtype).unwrap_or_else(|error| panic!("{error}"))
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

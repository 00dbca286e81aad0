//! The list of golden cases and its meaning.

use crate::{Error, Result};
use danaus_tensor::safetensors::TensorFile;
use danaus_tensor::{DType, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

type Names = BTreeMap<String, String>;

/// Cases of one system that call the same operator. Maps of the group hold for each of its cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Folder under the golden folder.
    pub system: String,
    /// Operator.
    pub op: String,
    /// Allowed difference per dtype; the dtypes listed are those that run.
    #[serde(deserialize_with = "by_dtype")]
    pub tolerance: BTreeMap<DType, f64>,
    /// Input or attribute name -> tensor in the file; see [`Case`].
    #[serde(flatten)]
    pub maps: Maps,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Which tensor of a golden file plays which part.
#[derive(Debug, Default, Deserialize)]
pub struct Maps {
    /// Operator input -> tensor.
    #[serde(default)]
    pub inputs: Names,
    /// Attribute -> value.
    #[serde(default)]
    pub set: Names,
    /// Attribute -> tensor whose elements are its value; `name[i]` takes one element.
    #[serde(default)]
    pub set_from: Names,
    /// Operator output -> tensor with the expected values.
    #[serde(default)]
    pub outputs: Names,
    /// Operator output -> tensor with its cotangent.
    #[serde(default)]
    pub cotangents: Names,
    /// Operator input -> tensor with the expected gradient.
    #[serde(default)]
    pub gradients: Names,
}

/// One golden file, or one use of it.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// File name without ending.
    pub file: String,
    /// Distinguishes several uses of one file.
    #[serde(default)]
    pub label: String,
    /// Additions to the group's maps. An empty name takes an entry of the group away.
    #[serde(flatten)]
    pub maps: Maps,
}

fn by_dtype<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<DType, f64>, D::Error> {
    let named = BTreeMap::<String, f64>::deserialize(deserializer)?;
    let parse = |(name, tolerance): (String, f64)| {
        let dtype: DType = name.parse().map_err(serde::de::Error::custom)?;
        Ok((dtype, tolerance))
    };
    named.into_iter().map(parse).collect()
}

/// Reads `cases.json` of the golden folder.
///
/// # Errors
/// When it is missing or malformed, with the place.
pub fn load(golden: &Path) -> Result<Vec<Group>> {
    let path = golden.join("cases.json");
    let fail = |detail: String| Error::Cases { path: path.clone(), detail };
    let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| fail(error.to_string()))
}

/// A tensor of a golden file; a complex one may be the pair `NAME.re` and `NAME.im`.
///
/// # Errors
/// When there is neither.
pub(super) fn read(file: &TensorFile, name: &str) -> Result<Tensor> {
    let parts = ["re", "im"].map(|part| format!("{name}.{part}"));
    if file.info(name).is_some() || parts.iter().any(|part| file.info(part).is_none()) {
        return Ok(file.tensor(name)?);
    }
    Ok(Tensor::complex(&file.tensor(&parts[0])?, &file.tensor(&parts[1])?)?)
}

fn merged(group: &Names, case: &Names) -> Names {
    let mut all = group.clone();
    all.extend(case.clone());
    all.retain(|_, name| !name.is_empty());
    all
}

impl Case {
    /// File and label.
    pub fn title(&self) -> String {
        if self.label.is_empty() {
            self.file.clone()
        } else {
            format!("{}:{}", self.file, self.label)
        }
    }

    /// Operator input -> tensor with the expected gradient.
    pub fn gradients(&self, group: &Group) -> Names {
        merged(&group.maps.gradients, &self.maps.gradients)
    }

    /// Result name -> tensor with the expected values, gradients included.
    pub fn expected(&self, group: &Group) -> Names {
        let mut all = merged(&group.maps.outputs, &self.maps.outputs);
        let gradients = self.gradients(group).into_iter();
        all.extend(gradients.map(|(input, golden)| (format!("grad.{input}"), golden)));
        all
    }

    /// Inputs and cotangents as the registry wants them.
    ///
    /// # Errors
    /// When the file lacks one.
    pub fn call_tensors(
        &self,
        group: &Group,
        file: &TensorFile,
    ) -> Result<BTreeMap<String, Tensor>> {
        let inputs = merged(&group.maps.inputs, &self.maps.inputs).into_iter();
        let cotangents = merged(&group.maps.cotangents, &self.maps.cotangents).into_iter();
        let cotangents = cotangents
            .filter(|_| !self.gradients(group).is_empty())
            .map(|(output, golden)| (format!("grad_out.{output}"), golden));
        inputs.chain(cotangents).map(|(name, golden)| Ok((name, read(file, &golden)?))).collect()
    }

    /// Attributes as text.
    ///
    /// # Errors
    /// When the file lacks a tensor that an attribute comes from.
    pub fn attributes(&self, group: &Group, file: &TensorFile) -> Result<Names> {
        let mut all = merged(&group.maps.set, &self.maps.set);
        for (attribute, source) in merged(&group.maps.set_from, &self.maps.set_from) {
            let (name, index) = match source.strip_suffix(']').and_then(|s| s.split_once('[')) {
                Some((name, index)) => (name, index.parse::<usize>().ok()),
                None => (source.as_str(), None),
            };
            let values = file.tensor(name)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
            let chosen = match index {
                Some(index) => values.get(index..=index).unwrap_or_default(),
                None => &values[..],
            };
            let text: Vec<String> = chosen.iter().map(f64::to_string).collect();
            all.insert(attribute, text.join(","));
        }
        Ok(all)
    }
}

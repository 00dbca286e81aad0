//! Other projects' architectures: translations of their configs and maps of their names, nothing else.
//!
//! A family is two functions. `translate` names every field of their config once, beside the part of
//! ours that it stands for, and so reads and writes it ([`Fields`]). `names` is the table of tensor
//! names ([`NameMap`]). The network itself is the one of [`crate::decoder`].

mod fields;
mod gguf;
mod gpt2;
mod gpt_bigcode;
mod llama;
mod mamba;
mod mamba2;
mod names;
mod opt;
mod rope;
mod state_spaces;
mod windows;

pub use fields::{Fields, number, parse_object, spelled};
pub use names::{How, NameMap, Renamed, stored};
pub(crate) use names::{JOINED, parts_of};

use crate::config::Config;
use crate::{Error, Result};
use danaus_matrix::structured::Format;
use serde_json::{Map, Value};

/// Positions of a model that has no bound of its own.
pub(crate) const UNBOUNDED: usize = 1 << 20;

/// An architecture of another project.
#[derive(Debug)]
pub struct Family {
    /// How reports call it.
    pub name: &'static str,
    /// Values of `model_type` with the class that Hugging Face loads for them.
    pub kinds: &'static [(&'static str, &'static str)],
    translate: fn(&mut Fields, &mut Config) -> Result<()>,
    names: fn(&Config) -> NameMap,
}

/// Families with a `config.json`, those of Hugging Face first.
pub static FAMILIES: &[Family] = &[
    llama::FAMILY,
    opt::FAMILY,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    mamba::FAMILY,
    mamba2::FAMILY,
    state_spaces::FAMILY,
];

impl Family {
    /// Their fields as our config.
    ///
    /// # Errors
    /// Naming the field that is missing, contradicts another, or is not implemented.
    pub fn read(&self, kind: &str, fields: &Map<String, Value>) -> Result<Config> {
        let (mut fields, mut config) = (Fields::read(fields, kind), Config::bare(0, 0, ""));
        (self.translate)(&mut fields, &mut config)?;
        config.check()?;
        Ok(config)
    }

    /// Our config as their fields, if reading them gives the same config back.
    pub fn write(&self, kind: &str, config: &Config) -> Option<Map<String, Value>> {
        let mut fields = Fields::write(kind);
        (self.translate)(&mut fields, &mut config.clone()).ok()?;
        let fields = fields.into_object();
        (self.read(kind, &fields).ok()? == *config).then_some(fields)
    }

    /// The table of tensor names for a model.
    pub fn names(&self, config: &Config) -> NameMap {
        (self.names)(config)
    }
}

/// The family of a `config.json`, and its kind.
///
/// # Errors
/// When there is none; the message lists them all.
pub fn recognise(fields: &Map<String, Value>) -> Result<(&'static Family, String)> {
    let kind = match fields.get("model_type").and_then(Value::as_str) {
        Some(kind) => kind,
        None if fields.contains_key("ssm_cfg") => "state-spaces",
        None => "missing",
    };
    find(FAMILIES, kind).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.kinds).map(|kind| kind.0).collect();
        let valid = format!("danaus, {}", known.join(", "));
        Error::Field { field: "model_type".into(), given: kind.into(), valid }
    })
}

/// The family of a GGUF file's `general.architecture`.
///
/// # Errors
/// When there is none; the message lists them all.
pub fn recognise_gguf(architecture: &str) -> Result<(&'static Family, String)> {
    find(gguf::FAMILIES, architecture).ok_or_else(|| {
        let known: Vec<&str> = gguf::FAMILIES.iter().flat_map(|f| f.kinds).map(|k| k.0).collect();
        let (field, valid) = ("general.architecture".into(), known.join(", "));
        Error::Field { field, given: architecture.into(), valid }
    })
}

fn find(families: &'static [Family], kind: &str) -> Option<(&'static Family, String)> {
    let family = families.iter().find(|family| family.kinds.iter().any(|known| known.0 == kind))?;
    Some((family, kind.to_string()))
}

/// A Hugging Face `config.json` for a model: family and fields, without token ids.
///
/// # Errors
/// When no family can spell it.
pub fn spell(config: &Config) -> Result<(&'static Family, Map<String, Value>)> {
    // Padding rows and the format of weights are no part of that spelling.
    let plain = Config { used_vocab: None, weights: Format::Dense, ..config.clone() };
    for family in FAMILIES.iter().filter(|family| family.name != state_spaces::FAMILY.name) {
        for (kind, class) in family.kinds {
            if let Some(mut fields) = family.write(kind, &plain) {
                fields.insert("model_type".into(), (*kind).into());
                fields.insert("architectures".into(), vec![*class].into());
                return Ok((family, fields));
            }
        }
    }
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    let valid = format!("one that a Hugging Face architecture has ({})", known.join(", "));
    Err(Error::argument("config", format!("a model of layers {}", config.layers), valid))
}

#[cfg(test)]
mod tests;

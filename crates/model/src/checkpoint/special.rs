//! Tokens with a role: `generation_config.json`, or the same fields of `config.json`.

use super::write_text;
use crate::families::parse_object;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file that says how to generate.
pub(crate) const GENERATION_NAME: &str = "generation_config.json";

/// Tokens that begin, end and fill texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Stands before a text.
    pub bos: Option<u32>,
    /// Any of them ends a text.
    pub eos: Vec<u32>,
    /// Fills batches of other libraries; unused here.
    pub pad: Option<u32>,
}

impl SpecialTokens {
    /// From a folder's `generation_config.json`, and where that is silent from `config.json`.
    ///
    /// # Errors
    /// When the file is malformed or a field is no token id or list of them.
    pub(crate) fn load(folder: &Path, config: &Map<String, Value>) -> Result<Self> {
        let path = folder.join(GENERATION_NAME);
        let mut fields = Map::new();
        if path.is_file() {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| danaus_tensor::Error::io(&path, error))?;
            fields = parse_object(&text)
                .map_err(|detail| Error::Config { path: path.clone(), detail })?;
        }
        let ids = |field: &str| {
            let given = fields.get(field).filter(|value| !value.is_null());
            let Some(value) = given.or_else(|| config.get(field)) else { return Ok(Vec::new()) };
            ids(value).ok_or_else(|| {
                let detail = format!("{field} is {value}, valid is a token id or a list of them");
                Error::Config { path: path.clone(), detail }
            })
        };
        Ok(Self {
            bos: ids("bos_token_id")?.first().copied(),
            eos: ids("eos_token_id")?,
            pad: ids("pad_token_id")?.first().copied(),
        })
    }

    /// The fields of both files.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let eos = match &*self.eos {
            [] => Value::Null,
            [one] => json!(one),
            all => json!(all),
        };
        let mut fields = Map::new();
        fields.insert("bos_token_id".into(), json!(self.bos));
        fields.insert("eos_token_id".into(), eos);
        fields.insert("pad_token_id".into(), json!(self.pad));
        fields
    }

    /// Writes `generation_config.json`, if there is anything to say.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        write_text(&folder.join(GENERATION_NAME), &pretty(self.fields()))
    }
}

pub(super) fn pretty(fields: Map<String, Value>) -> String {
    // Maps of numbers and texts always serialise.
    serde_json::to_string_pretty(&Value::Object(fields)).unwrap_or_default()
}

/// An id or several; null is none, and so is -1, which some files write for it.
fn ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
        Value::Number(number) => Some(vec![u32::try_from(number.as_u64()?).ok()?]),
        Value::Array(items) => {
            items.iter().map(|item| u32::try_from(item.as_u64()?).ok()).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_fallbacks() {
        let folder = tempfile::tempdir().unwrap();
        let config = parse_object(r#"{"bos_token_id": 7, "eos_token_id": 8}"#).unwrap();
        let own = SpecialTokens::load(folder.path(), &config).unwrap();
        assert_eq!(own, SpecialTokens { bos: Some(7), eos: vec![8], pad: None });
        let path = folder.path().join(GENERATION_NAME);
        std::fs::write(
            &path,
            r#"{"bos_token_id": null, "eos_token_id": [2, 1], "pad_token_id": -1}"#,
        )
        .unwrap();
        let found = SpecialTokens::load(folder.path(), &config).unwrap();
        assert_eq!(found, SpecialTokens { bos: Some(7), eos: vec![2, 1], pad: None });
        found.save(folder.path()).unwrap();
        assert_eq!(SpecialTokens::load(folder.path(), &Map::new()).unwrap(), found);
        std::fs::write(&path, r#"{"eos_token_id": "end"}"#).unwrap();
        let message = SpecialTokens::load(folder.path(), &config).unwrap_err().to_string();
        assert!(message.contains("eos_token_id is \"end\""), "{message}");
    }
}

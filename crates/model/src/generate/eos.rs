//! Which tokens end a text, by the files of a model's folder.

use crate::{Error, Result};
use danaus_text::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Files with an `eos_token_id`, the first that has one counts.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];

/// The tokens that end a text: `eos_token_id` (one id or a list) of `generation_config.json`, else of
/// `config.json`, else what the tokenizer calls the end. `folder` may be a file (a model in one file);
/// then only the tokenizer is asked.
///
/// # Errors
/// When a file is malformed or the entry neither an id nor a list of ids.
pub fn eos_tokens(folder: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    for name in FILES {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let fail = |detail: String| Error::Config { path: path.clone(), detail };
        let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let entry = match value.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| fail(format!("eos_token_id holds {value}, valid are token ids")))
        };
        return entry.iter().map(id).collect();
    }
    let end = tokenizer.and_then(|tokenizer| tokenizer.eos().or_else(|| tokenizer.end_of_text()));
    Ok(end.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine");
        Path::new(root).join(name)
    }

    #[test]
    fn one_id_a_list_or_the_tokenizer() {
        assert_eq!(eos_tokens(&golden("llama-gqa"), None).unwrap(), [2]);
        assert_eq!(eos_tokens(&golden("llama3-rope-tied-bf16"), None).unwrap(), [2, 1]);
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::load(&golden("llama-gqa")).unwrap();
        assert_eq!(eos_tokens(folder.path(), Some(&tokenizer)).unwrap(), [2]);
        assert!(eos_tokens(folder.path(), None).unwrap().is_empty());
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"eos_token_id": 7}"#).unwrap();
        assert_eq!(eos_tokens(folder.path(), Some(&tokenizer)).unwrap(), [7]);
        std::fs::write(&path, r#"{"eos_token_id": ["x"]}"#).unwrap();
        let message = eos_tokens(folder.path(), None).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains("\"x\""), "{message}");
    }
}

//! What stands beside a `tokenizer.json`: `tokenizer_config.json` and `special_tokens_map.json`.
//!
//! Both spell special tokens as a string or as an object with `content`. The first file wins where
//! both name a token, and gives the chat template (one text, or a list of named ones) unless a
//! `chat_template.jinja` lies in the folder. Unknown entries are left alone: the files belong to other
//! programs, too.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// Larger files are taken for damaged ones.
const MAX_BYTES: u64 = 16 << 20;
const CONFIG_NAME: &str = "tokenizer_config.json";
const MAP_NAME: &str = "special_tokens_map.json";
const TEMPLATE_NAME: &str = "chat_template.jinja";
/// A folder of further templates, `NAME.jinja` each.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";

/// Special tokens by their part, and templates by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills batches (never used here).
    pub pad: Option<String>,
    /// Stands for the unknown.
    pub unk: Option<String>,
    /// Whether encoding begins with `bos`; `None` leaves it to `tokenizer.json`.
    pub add_bos: Option<bool>,
    /// Chat templates by name; the usual one is `default`.
    pub templates: Vec<(String, String)>,
}

fn read(path: &Path) -> Result<Option<String>> {
    let size = match std::fs::metadata(path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    if size > MAX_BYTES {
        let problem = format!("{size} bytes; valid: at most {MAX_BYTES}");
        return Err(Error::Settings { path: path.to_path_buf(), problem });
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| Error::io("read", path, error))
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = read(path)? else { return Ok(None) };
    let value: Value = serde_json::from_str(&text).map_err(|error| Error::Settings {
        path: path.to_path_buf(),
        problem: format!("not valid JSON: {error}"),
    })?;
    Ok(Some(value))
}

impl Settings {
    /// Reads the files of a folder; absent files leave everything open.
    ///
    /// # Errors
    /// Unreadable files, malformed JSON, entries of another type than they should have.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut settings = Self::default();
        // The later file wins.
        for name in [MAP_NAME, CONFIG_NAME] {
            let path = folder.join(name);
            if let Some(value) = read_json(&path)? {
                settings.take(&value).map_err(|problem| Error::Settings { path, problem })?;
            }
        }
        settings.take_template_files(folder)?;
        Ok(settings)
    }

    /// Writes a `tokenizer_config.json` into a folder.
    ///
    /// # Errors
    /// Whatever writing reports.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let named = |(name, template): &(String, String)| serde_json::json!({"name": name, "template": template});
        let templates = match &self.templates[..] {
            [] => Value::Null,
            [(name, template)] if name == "default" => Value::from(template.as_str()),
            list => list.iter().map(named).collect(),
        };
        let all = serde_json::json!({
            "bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad,
            "unk_token": self.unk, "add_bos_token": self.add_bos, "chat_template": templates,
        });
        let path = folder.join(CONFIG_NAME);
        std::fs::write(&path, format!("{all:#}\n")).map_err(|e| Error::io("write", &path, e))
    }

    /// Takes over what a parsed file says.
    fn take(&mut self, file: &Value) -> std::result::Result<(), String> {
        let Some(file) = file.as_object() else {
            return Err("not an object".into());
        };
        let tokens = [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("pad_token", &mut self.pad),
            ("unk_token", &mut self.unk),
        ];
        for (name, slot) in tokens {
            if let Some(token) = file.get(name).filter(|value| !value.is_null()) {
                let text = token.as_str().or_else(|| token.get("content")?.as_str());
                let valid = || {
                    format!(
                        "{name} is {token}; valid: a string, or an object with one in `content`"
                    )
                };
                *slot = Some(text.ok_or_else(valid)?.to_string());
            }
        }
        match file.get("add_bos_token") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(add)) => self.add_bos = Some(*add),
            Some(other) => return Err(format!("add_bos_token is {other}; valid: true, false")),
        }
        match file.get("chat_template") {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(template)) => {
                self.templates = vec![("default".into(), template.clone())];
                Ok(())
            }
            Some(Value::Array(list)) => {
                self.templates = list.iter().map(named_template).collect::<Option<_>>().ok_or(
                    "chat_template is a list; valid: objects with the strings `name` and `template`",
                )?;
                Ok(())
            }
            Some(_) => Err("chat_template is neither a string nor a list".into()),
        }
    }

    /// Template files replace what the config says.
    fn take_template_files(&mut self, folder: &Path) -> Result<()> {
        if let Some(template) = read(&folder.join(TEMPLATE_NAME))? {
            self.set_template("default", template);
        }
        let more = folder.join(TEMPLATE_FOLDER);
        if !more.is_dir() {
            return Ok(());
        }
        let entries = std::fs::read_dir(&more).map_err(|error| Error::io("list", &more, error))?;
        for entry in entries {
            let path = entry.map_err(|error| Error::io("list", &more, error))?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(name), Some("jinja")) =
                (name, path.extension().and_then(|extension| extension.to_str()))
                && let Some(template) = read(&path)?
            {
                self.set_template(name, template);
            }
        }
        Ok(())
    }

    /// Adds or replaces a template.
    pub fn set_template(&mut self, name: &str, template: String) {
        self.templates.retain(|(known, _)| known != name);
        self.templates.push((name.to_string(), template));
    }

    /// The template of a name.
    pub fn template(&self, name: &str) -> Option<&str> {
        self.templates.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }
}

fn named_template(entry: &Value) -> Option<(String, String)> {
    let text = |name: &str| entry.get(name)?.as_str().map(String::from);
    Some((text("name")?, text("template")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn tokens_are_strings_or_objects_and_the_config_wins() {
        let found = folder(&[
            (MAP_NAME, r#"{"bos_token": "<a>", "pad_token": {"content": "<p>", "lstrip": false}}"#),
            (
                CONFIG_NAME,
                r#"{"bos_token": {"content": "<b>"}, "eos_token": "</s>", "unk_token": null,
                              "add_bos_token": true, "chat_template": "plain", "other": 1}"#,
            ),
        ]);
        let settings = Settings::load(found.path()).unwrap();
        assert_eq!(settings.bos.as_deref(), Some("<b>"));
        assert_eq!(settings.eos.as_deref(), Some("</s>"));
        assert_eq!(settings.pad.as_deref(), Some("<p>"));
        assert_eq!((settings.unk.as_deref(), settings.add_bos), (None, Some(true)));
        assert_eq!(settings.template("default"), Some("plain"));
        assert_eq!(Settings::load(folder(&[]).path()).unwrap(), Settings::default());
        let again = folder(&[]);
        settings.save(again.path()).unwrap();
        assert_eq!(Settings::load(again.path()).unwrap(), settings);
    }

    #[test]
    fn templates_by_name_and_from_files() {
        let list = r#"{"chat_template": [{"name": "default", "template": "a"},
                                         {"name": "tool_use", "template": "b"}]}"#;
        let found = folder(&[
            (CONFIG_NAME, list),
            (TEMPLATE_NAME, "file"),
            ("additional_chat_templates/rag.jinja", "rag"),
        ]);
        let settings = Settings::load(found.path()).unwrap();
        let named = ["default", "tool_use", "rag", "none"].map(|name| settings.template(name));
        assert_eq!(named, [Some("file"), Some("b"), Some("rag"), None]);
    }

    #[test]
    fn malformed_entries_are_named() {
        for (text, expected) in [
            ("{\"bos_token\": 1}", "bos_token is 1"),
            ("{\"add_bos_token\": \"yes\"}", "add_bos_token is \"yes\""),
            ("{\"chat_template\": 3}", "chat_template"),
            ("{\"chat_template\": [{}]}", "`name` and `template`"),
            ("[]", "not an object"),
            ("{", "not valid JSON"),
        ] {
            let error = Settings::load(folder(&[(CONFIG_NAME, text)]).path()).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains(CONFIG_NAME), "{message}");
        }
    }
}

//! Another project's settings, read and written by one function per family.
//!
//! A family names each field once, beside the part of our config it stands for; the same function
//! fills our config from a file ([`Fields::read`]) and writes a file from our config
//! ([`Fields::write`]). A spelling is used only if reading it gives the config back, so a family need
//! not say what it cannot express.
//!
//! Forgiving in spelling, strict in meaning: a field that nobody reads is refused unless it is known
//! not to change the numbers, or is off (null, false, empty). So no setting is dropped in silence.
//! JSON is read with the bare words `Infinity` and `NaN`, which Python writes, and the spelling
//! `{"__float__": "Infinity"}`.

use crate::config::MAX_LAYERS;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Fields of the Hugging Face format that steer training, initialisation, generation or other tasks.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "_num_labels",
    "activation_dropout",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "init_std",
    "initializer_range",
    "is_decoder",
    "label2id",
    "layerdrop",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "typical_p",
    "use_cache",
];

/// The fields of a JSON object, or of a section of it.
pub struct Fields<'a> {
    /// What is read; nothing when writing.
    given: Option<&'a Map<String, Value>>,
    written: Map<String, Value>,
    read: BTreeSet<String>,
    prefix: String,
    kind: String,
}

impl<'a> Fields<'a> {
    /// The fields of a file that describes a model of this kind.
    pub fn read(fields: &'a Map<String, Value>, kind: &str) -> Self {
        let (written, read, prefix) = (Map::new(), BTreeSet::new(), String::new());
        Self { given: Some(fields), written, read, prefix, kind: kind.to_string() }
    }

    /// A file to be written for a model of this kind.
    pub fn write(kind: &str) -> Self {
        let (written, read, prefix) = (Map::new(), BTreeSet::new(), String::new());
        Self { given: None, written, read, prefix, kind: kind.to_string() }
    }

    /// The architecture's name in the file, e.g. `llama`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether a file is written, so that values come from our config.
    pub fn writing(&self) -> bool {
        self.given.is_none()
    }

    /// What was written.
    pub fn into_object(self) -> Map<String, Value> {
        self.written
    }

    /// An error about a field.
    pub fn refuse(&self, field: &str, given: impl ToString, valid: impl Into<String>) -> Error {
        let field = format!("{}{field}", self.prefix);
        Error::Field { field, given: given.to_string(), valid: valid.into() }
    }

    /// The value of a field that is read; null counts as missing.
    pub fn value(&mut self, field: &str) -> Option<&'a Value> {
        self.read.insert(field.to_string());
        self.given?.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.given.is_some_and(|fields| fields.contains_key(field))
    }

    /// Writes a field, when writing.
    pub fn put(&mut self, field: &str, value: impl Into<Value>) {
        if self.writing() {
            self.written.insert(field.to_string(), value.into());
        }
    }

    /// A whole number, if given.
    pub fn size_if(&mut self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        // Python writes some sizes as floats.
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64()?;
            (float.fract() == 0.0 && (0.0..1e15).contains(&float)).then_some(float as u64)
        });
        let size = whole.and_then(|whole| usize::try_from(whole).ok()).filter(|&n| n <= 1 << 31);
        size.map(Some).ok_or_else(|| self.refuse(field, value, "a whole number from 0 to 2^31"))
    }

    /// A whole number that must be there.
    pub fn size(&mut self, field: &str, ours: &mut usize) -> Result<()> {
        if !self.writing() {
            let given = self.size_if(field)?;
            *ours = given.ok_or_else(|| self.refuse(field, "missing", "a whole number"))?;
        }
        self.put(field, *ours);
        Ok(())
    }

    /// A whole number with a default.
    pub fn size_or(&mut self, field: &str, ours: &mut usize, default: usize) -> Result<()> {
        if !self.writing() {
            *ours = self.size_if(field)?.unwrap_or(default);
        }
        self.put(field, *ours);
        Ok(())
    }

    /// A whole number that we leave out where other sizes imply it.
    pub fn size_unless(
        &mut self,
        field: &str,
        ours: &mut Option<usize>,
        implied: usize,
    ) -> Result<()> {
        if !self.writing() {
            *ours = self.size_if(field)?.filter(|&given| given != implied);
        }
        self.put(field, ours.unwrap_or(implied));
        Ok(())
    }

    /// A number, if given; infinities may be spelled out.
    pub fn number_if(&mut self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        number(value).map(Some).ok_or_else(|| self.refuse(field, value, "a number"))
    }

    /// A number with a default.
    pub fn number(&mut self, field: &str, ours: &mut f64, default: f64) -> Result<()> {
        if !self.writing() {
            *ours = self.number_if(field)?.unwrap_or(default);
        }
        self.put(field, spelled(*ours));
        Ok(())
    }

    /// A truth value with a default.
    pub fn flag(&mut self, field: &str, ours: &mut bool, default: bool) -> Result<()> {
        if let Some(value) = self.value(field) {
            let given = value.as_bool();
            *ours = given.ok_or_else(|| self.refuse(field, value, "true or false"))?;
        } else if !self.writing() {
            *ours = default;
        }
        self.put(field, *ours);
        Ok(())
    }

    /// A text, if given.
    pub fn text_if(&mut self, field: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refuse(field, value, "a text"))
    }

    /// A list, empty where missing.
    pub fn list(&mut self, field: &str) -> Result<&'a [Value]> {
        let Some(value) = self.value(field) else { return Ok(&[]) };
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.refuse(field, value, "a list"))
    }

    /// A section; a missing one has no fields.
    pub fn section(
        &mut self,
        field: &str,
        work: impl FnOnce(&mut Fields) -> Result<()>,
    ) -> Result<()> {
        let nothing = Map::new();
        let given = match self.value(field) {
            Some(value) => {
                let fields = value.as_object();
                Some(fields.ok_or_else(|| self.refuse(field, value, "an object"))?)
            }
            None => (!self.writing()).then_some(&nothing),
        };
        let mut inner = Fields {
            given,
            written: Map::new(),
            read: BTreeSet::new(),
            prefix: format!("{}{field}.", self.prefix),
            kind: self.kind.clone(),
        };
        work(&mut inner)?;
        self.put(field, inner.written);
        Ok(())
    }

    /// Refuses any value but the one this engine implements; missing counts as that one.
    pub fn only(&mut self, field: &str, valid: impl Into<Value>) -> Result<()> {
        let valid = valid.into();
        match self.value(field) {
            Some(value) if *value != valid => {
                Err(self.refuse(field, value, format!("{valid} (others are not implemented)")))
            }
            _ => {
                self.put(field, valid);
                Ok(())
            }
        }
    }

    /// Refuses a value other than what other fields imply.
    pub fn implied(&mut self, field: &str, expected: usize, by: &str) -> Result<()> {
        match self.size_if(field)? {
            Some(given) if given != expected => {
                Err(self.refuse(field, given, format!("{expected}, from {by}")))
            }
            _ => {
                self.put(field, expected);
                Ok(())
            }
        }
    }

    /// A lower and an upper bound; a missing or infinite upper one is none.
    pub fn limits(&mut self, field: &str, ours: &mut (f64, Option<f64>)) -> Result<()> {
        let given = self.value(field);
        if let Some(value) = given {
            let numbers = value.as_array().map(|list| list.iter().map(number).collect::<Vec<_>>());
            let Some([Some(low), Some(high)]) = numbers.as_deref() else {
                return Err(self.refuse(field, value, "two numbers: low, high"));
            };
            *ours = (*low, (*high != f64::INFINITY).then_some(*high));
        } else if !self.writing() {
            *ours = (0.0, None);
        }
        self.put(field, vec![spelled(ours.0), spelled(ours.1.unwrap_or(f64::INFINITY))]);
        Ok(())
    }

    /// As [`Self::implied`], for a field that is never written.
    pub fn agrees(&mut self, field: &str, expected: usize, by: &str) -> Result<()> {
        if self.has(field) { self.implied(field, expected, by) } else { Ok(()) }
    }

    /// A number of layers, all with one letter.
    pub fn layers(&mut self, field: &str, ours: &mut String, letter: char) -> Result<()> {
        let mut count = ours.len();
        self.size(field, &mut count)?;
        if count == 0 || count > MAX_LAYERS {
            return Err(self.refuse(field, count, format!("1..={MAX_LAYERS}")));
        }
        *ours = std::iter::repeat_n(letter, count).collect();
        Ok(())
    }

    /// One of our activations by its Hugging Face name; `default` is also what is written for it.
    pub fn activation(&mut self, field: &str, ours: &mut String, default: &str) -> Result<()> {
        let known = |name: &str| {
            let found = ACTIVATIONS.iter().find(|(_, theirs)| theirs.contains(&name));
            found.map(|(ours, _)| (*ours).to_string())
        };
        if !self.writing() {
            let given = self.text_if(field)?.unwrap_or(default);
            let all: Vec<&str> =
                ACTIVATIONS.iter().flat_map(|(_, names)| *names).copied().collect();
            *ours = known(given).ok_or_else(|| self.refuse(field, given, all.join(", ")))?;
        } else if known(default).as_ref() == Some(ours) {
            self.put(field, default);
        } else if let Some((_, names)) = ACTIVATIONS.iter().find(|(name, _)| name == ours) {
            self.put(field, names[0]);
        }
        Ok(())
    }

    /// Refuses fields that nobody has read, are on, and may change the numbers.
    pub fn done(&self, also_harmless: &[&str]) -> Result<()> {
        let Some(fields) = self.given else { return Ok(()) };
        let known = |field: &str| {
            self.read.contains(field) || HARMLESS.contains(&field) || also_harmless.contains(&field)
        };
        match fields.iter().find(|(field, value)| !known(field) && !is_off(value)) {
            Some((field, value)) => {
                let shown: String = value.to_string().chars().take(60).collect();
                let given = format!("{shown}, a setting unknown here");
                let valid = "absent: remove it if it does not change the numbers";
                Err(self.refuse(field, given, valid))
            }
            None => Ok(()),
        }
    }
}

/// Our activations and their names elsewhere, the usual one first.
const ACTIVATIONS: &[(&str, &[&str])] = &[
    ("gelu", &["gelu", "gelu_python"]),
    ("gelu_tanh", &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"]),
    ("silu", &["silu", "swish"]),
    ("relu", &["relu"]),
];

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A number, plain or spelled out.
pub fn number(value: &Value) -> Option<f64> {
    let spelled = value.get("__float__").and_then(Value::as_str);
    match spelled {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        Some(_) => None,
        None => value.as_f64(),
    }
}

/// How a number is written; JSON itself has no infinity.
pub fn spelled(number: f64) -> Value {
    let word = match number {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ if number.is_nan() => "NaN",
        finite => return Value::from(finite),
    };
    serde_json::json!({ "__float__": word })
}

/// Parses an object whose numbers may be `Infinity`, `-Infinity` or `NaN`.
///
/// # Errors
/// The parser's complaint, or that it is no object.
pub fn parse_object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => serde_json::from_str(&spell_words(text)).map_err(|error| error.to_string())?,
    };
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err("not a JSON object".to_string()),
    }
}

/// Replaces the bare words outside of strings.
fn spell_words(text: &str) -> String {
    let (mut out, mut rest, mut quoted) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        match (quoted, c, word) {
            (false, _, Some(word)) => {
                out.push_str(&format!("{{\"__float__\":\"{word}\"}}"));
                rest = &rest[word.len()..];
                continue;
            }
            (true, '\\', _) => {
                out.push(c);
                rest = &rest[1..];
            }
            (_, '"', _) => quoted = !quoted,
            _ => {}
        }
        let Some(c) = rest.chars().next() else { break };
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_read_in_every_spelling() {
        let text = r#"{"a": Infinity, "b": [-Infinity, NaN], "c": "In\"finity NaN\\",
            "d": {"__float__": "Infinity"}, "e": 1e5}"#;
        let fields = parse_object(text).unwrap();
        assert_eq!(number(&fields["a"]), Some(f64::INFINITY));
        assert_eq!(number(&fields["b"][0]), Some(f64::NEG_INFINITY));
        assert!(number(&fields["b"][1]).unwrap().is_nan());
        assert_eq!(fields["c"], "In\"finity NaN\\");
        assert_eq!(number(&fields["d"]), Some(f64::INFINITY));
        assert_eq!(number(&fields["e"]), Some(1e5));
        assert_eq!(number(&spelled(f64::INFINITY)), Some(f64::INFINITY));
        for bad in ["", "[1]", "{\"a\": Inf}", "{\"a\": \"b\\", "\\", "{"] {
            assert!(parse_object(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unread_settings_are_refused_unless_off() {
        let fields = parse_object(r#"{"a": 1, "off": false, "dtype": "x", "odd": 2}"#).unwrap();
        let (mut read, mut a) = (Fields::read(&fields, "x"), 0);
        read.size("a", &mut a).unwrap();
        assert_eq!(a, 1);
        let message = read.done(&[]).unwrap_err().to_string();
        assert!(message.contains("odd is 2") && message.contains("remove it"), "{message}");
        read.done(&["odd"]).unwrap();
    }
}

//! The Jinja environment: functions, filters, formatting, and what errors say.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error as JinjaError, ErrorKind};
use serde::Serialize;

use super::growth::{self, text_of};
use super::json::Python;
use super::meter::{MAX_VALUE, Meter};
use super::program;
use crate::{Error, Result};

/// The name under which the one template is known.
const NAME: &str = "chat";
/// Longest source; real templates have at most some ten thousand characters.
const MAX_SOURCE: usize = 1 << 20;
/// Steps of the template engine, those that measure values included; a long conversation takes some ten
/// thousand.
const FUEL: u64 = 5_000_000;
/// Nesting: a loop counts once, a call of a macro some ten times.
const RECURSION: usize = 256;
/// Bytes of a rendered conversation.
const MAX_OUTPUT: usize = 64 << 20;

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The environment of all templates.
pub(super) fn build() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_formatter(|out, state, value| {
        let text = match value.kind() {
            ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
            ValueKind::None => "None".into(),
            _ => text_of(value)?,
        };
        Meter::of(state).charge(text.len())?;
        Ok(out.write_str(&text)?)
    });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    growth::install(&mut environment);
    program::install(&mut environment);
    environment
}

/// The source as [`render`] takes it.
pub(super) fn prepare(source: &str) -> Result<String> {
    if source.len() > MAX_SOURCE {
        let problem = format!("{} bytes; valid: at most {MAX_SOURCE}", source.len());
        return Err(Error::Template { line: None, problem });
    }
    program::prepare(NAME, &without_generation_marks(source)).map_err(translate)
}

pub(super) fn render(environment: &Environment, source: &str, context: Value) -> Result<String> {
    let text = program::render(environment, (NAME, source), context).map_err(translate)?;
    if text.len() > MAX_OUTPUT {
        let problem = format!("the output exceeds {MAX_OUTPUT} bytes");
        return Err(Error::Template { line: None, problem });
    }
    Ok(text)
}

/// The template's own words where it has any, else what minijinja says, with the line.
fn translate(error: JinjaError) -> Error {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
            return Error::Refused(message.clone());
        }
        cause = inner.source();
    }
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => format!("takes more than {FUEL} steps"),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    Error::Template { line: error.line(), problem }
}

fn raise_exception(message: &str) -> std::result::Result<Value, JinjaError> {
    let raised = JinjaError::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(raised.with_source(Raised(message.to_string())))
}

fn strftime_now(format: &str) -> std::result::Result<String, JinjaError> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now).map_err(|error| {
        JinjaError::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
    })
}

fn to_json(
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> std::result::Result<Value, JinjaError> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    if indent.is_some_and(|indent| indent > 16) {
        return Err(JinjaError::new(ErrorKind::InvalidOperation, "tojson: indent above 16"));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let separators = separators.and_then(|pair| <[String; 2]>::try_from(pair).ok());
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let formatter = Python::new(indent, separators.map(|[item, key]| (item, key)));
    let mut bytes = Bounded(Vec::new());
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    let written = match sorted {
        // A `serde_json::Value` keeps its keys sorted.
        Some(true) => serde_json::to_value(value).and_then(|value| value.serialize(&mut writer)),
        _ => value.serialize(&mut writer),
    };
    let fail = |problem: String| JinjaError::new(ErrorKind::BadSerialization, problem);
    written.map_err(|error| fail(format!("tojson: {error}")))?;
    let text = String::from_utf8(bytes.0).map_err(|error| fail(error.to_string()))?;
    Ok(Value::from(if ascii == Some(true) { escape_non_ascii(&text) } else { text }))
}

/// Bytes that fit a value.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_VALUE {
            let problem = format!("builds a value of more than {MAX_VALUE} bytes");
            return Err(std::io::Error::other(problem));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Other characters as `\uXXXX`, in surrogate pairs where needed. They occur inside of strings only.
fn escape_non_ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                escaped += &format!("\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// `{% generation %}` and its end as the scope `{% if true %}`, white space control kept.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        result.push_str(before);
        // The end begins behind the beginning: `{%}` is no tag.
        let Some(end) = tag[2..].find("%}").map(|end| end + 2) else {
            rest = tag;
            break;
        };
        let (inner, after) = (&tag[2..end], &tag[end..]);
        let word = inner.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        let replaced = match word {
            "generation" => inner.replace("generation", "if true"),
            "endgeneration" => inner.replace("endgeneration", "endif"),
            _ => inner.to_string(),
        };
        result.push_str("{%");
        result.push_str(&replaced);
        rest = after;
    }
    result.push_str(rest);
    Cow::Owned(result)
}

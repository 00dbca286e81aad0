//! Messages of a conversation, checked before a template sees them.

use minijinja::Value;

use crate::{Error, Result};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, by their newer name.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] =
        [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool];

    /// The name templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One message: a role, its content, and whatever else the template may read.
#[derive(Clone, Debug)]
pub struct Message {
    role: Role,
    /// All entries, in the order in which they were given.
    pub(super) entries: Value,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: Role, content: &str) -> Self {
        let pairs = [("role", role.name()), ("content", content)];
        Self { role, entries: Value::from_iter(pairs) }
    }

    /// Who speaks.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The text; parts are put together.
    pub fn text(&self) -> String {
        let content = self.entries.get_attr("content").unwrap_or_default();
        if let Some(text) = content.as_str() {
            return text.to_string();
        }
        let parts = content.try_iter().into_iter().flatten();
        let texts = parts.map(|part| part.get_attr("text").unwrap_or_default());
        texts.filter_map(|text| text.as_str().map(String::from)).collect()
    }

    /// Reads a JSON list of messages. The order of entries inside of a message is kept: templates that
    /// print tool calls show it.
    ///
    /// # Errors
    /// Malformed JSON, an unknown role, or content that is neither text nor a list of text parts.
    pub fn parse_list(json: &str) -> Result<Vec<Self>> {
        let list: Vec<Value> = serde_json::from_str(json)
            .map_err(|error| Error::argument("messages", error, "a JSON list of objects"))?;
        list.into_iter().enumerate().map(|(index, entries)| Self::parse(index, entries)).collect()
    }

    fn parse(index: usize, entries: Value) -> Result<Self> {
        let fail = |problem: String| Error::Message { index, problem };
        let entry = |name: &str| entries.get_attr(name).unwrap_or_default();
        let valid = Role::ALL.map(Role::name).join(", ");
        let role = entry("role");
        let role = match role.as_str() {
            Some(name) => Role::from_name(name)
                .ok_or_else(|| fail(format!("role is `{name}`; valid: {valid}")))?,
            None => return Err(fail(format!("no role; valid: {valid}"))),
        };
        let content = entry("content");
        let absent = content.is_none() || content.is_undefined();
        let calls = entry("tool_calls");
        let called = role == Role::Assistant && calls.len().is_some_and(|count| count > 0);
        match absent {
            true if called => {}
            true => {
                let problem = "no content; valid: text, or a list of text parts (only an assistant \
                               that calls tools may have none)";
                return Err(fail(problem.into()));
            }
            false => check_content(&content).map_err(fail)?,
        }
        Ok(Self { role, entries })
    }
}

fn check_content(content: &Value) -> std::result::Result<(), String> {
    if content.as_str().is_some() {
        return Ok(());
    }
    let refuse = || "content is neither text nor a list of parts".to_string();
    if content.kind() != minijinja::value::ValueKind::Seq {
        return Err(refuse());
    }
    for part in content.try_iter().map_err(|_| refuse())? {
        let kind = part.get_attr("type").unwrap_or_default();
        let text = part.get_attr("text").unwrap_or_default();
        if kind.as_str() != Some("text") || text.as_str().is_none() {
            let kind = kind.as_str().unwrap_or("missing").to_string();
            return Err(format!(
                "a content part of type {kind}; valid: {{\"type\": \"text\", \"text\": \"...\"}}"
            ));
        }
    }
    Ok(())
}

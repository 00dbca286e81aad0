//! Which files are worth training on (StarCoder, section "Filters").
//!
//! Lines that are too long mark minified and generated code; text with few letters and digits marks
//! data. Prose (`md`, `txt`) writes a paragraph in one line, so the line limits spare it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Limits; `None` turns one off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Largest file, in bytes.
    pub max_file_bytes: Option<u64>,
    /// Longest line, in characters; code only.
    pub max_line_length: Option<usize>,
    /// Largest mean length of a line, in characters; code only.
    pub max_mean_line_length: Option<f64>,
    /// Smallest share of letters and digits among all characters.
    pub min_alphanumeric: Option<f64>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            max_file_bytes: Some(1 << 20),
            max_line_length: Some(1000),
            max_mean_line_length: Some(100.0),
            min_alphanumeric: Some(0.25),
        }
    }
}

/// Why a file was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// Its extension was not asked for.
    Extension,
    /// Larger than the limit.
    TooLarge,
    /// Nothing in it but white space.
    Empty,
    /// A line longer than the limit.
    LongLine,
    /// Lines longer than the limit on average.
    LongLines,
    /// Too few letters and digits.
    FewLetters,
    /// XML under another extension.
    Xml,
    /// Not UTF-8, and the policy was to skip such files.
    NotUtf8,
    /// An exact copy of a document already kept.
    Copy,
    /// The budget was used up.
    Budget,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Extension => "with other extensions",
            Self::TooLarge => "too large",
            Self::Empty => "empty",
            Self::LongLine => "with a very long line",
            Self::LongLines => "with long lines on average",
            Self::FewLetters => "with few letters and digits",
            Self::Xml => "XML",
            Self::NotUtf8 => "not UTF-8",
            Self::Copy => "exact copies",
            Self::Budget => "beyond the byte budget",
        })
    }
}

impl Filter {
    /// Keeps everything that is not empty.
    pub fn off() -> Self {
        Self {
            max_file_bytes: None,
            max_line_length: None,
            max_mean_line_length: None,
            min_alphanumeric: None,
        }
    }

    /// Judges a text; `is_prose` spares it the limits that are for code.
    ///
    /// # Errors
    /// The first reason to leave it out.
    pub fn check(&self, text: &str, is_prose: bool) -> Result<(), Rejection> {
        if text.trim().is_empty() {
            return Err(Rejection::Empty);
        }
        if self.max_file_bytes.is_some_and(|limit| text.len() as u64 > limit) {
            return Err(Rejection::TooLarge);
        }
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let characters = text.chars().count();
        let alphanumeric = text.chars().filter(|character| character.is_alphanumeric()).count();
        let mean = characters as f64 / text.lines().count().max(1) as f64;
        let share = alphanumeric as f64 / characters as f64;
        if !is_prose && self.max_line_length.is_some_and(|limit| longest > limit) {
            return Err(Rejection::LongLine);
        }
        if !is_prose && self.max_mean_line_length.is_some_and(|limit| mean > limit) {
            return Err(Rejection::LongLines);
        }
        if self.min_alphanumeric.is_some_and(|limit| share < limit) {
            return Err(Rejection::FewLetters);
        }
        let head = text.char_indices().nth(100).map_or(text.len(), |(offset, _)| offset);
        if !is_prose && text[..head].contains("<?xml version=") {
            return Err(Rejection::Xml);
        }
        Ok(())
    }
}

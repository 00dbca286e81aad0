//! The word splitter of GPT-2, by hand:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! The alternatives cover every character, so words are contiguous. The character classes are the
//! tables of the `regex-syntax` crate, from which a regular expression would be compiled too.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

/// Sorted, disjoint ranges of characters.
type Ranges = Vec<(char, char)>;

struct Tables {
    letters: Ranges,
    numbers: Ranges,
    spaces: Ranges,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables {
    letters: ranges(r"\p{L}"),
    numbers: ranges(r"\p{N}"),
    spaces: ranges(r"\s"),
});

fn ranges(class: &str) -> Ranges {
    match regex_syntax::parse(class).as_ref().map(regex_syntax::hir::Hir::kind) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        // The three classes above are constant and parse to this.
        _ => Vec::new(),
    }
}

fn contains(ranges: &Ranges, character: char) -> bool {
    let after = ranges.partition_point(|(start, _)| *start <= character);
    after > 0 && character <= ranges[after - 1].1
}

fn kind(character: char) -> Kind {
    match character {
        'a'..='z' | 'A'..='Z' => Kind::Letter,
        '0'..='9' => Kind::Number,
        ' ' | '\t'..='\r' => Kind::Space,
        '\0'..='\x7F' => Kind::Other,
        _ if contains(&TABLES.letters, character) => Kind::Letter,
        _ if contains(&TABLES.numbers, character) => Kind::Number,
        _ if contains(&TABLES.spaces, character) => Kind::Space,
        _ => Kind::Other,
    }
}

/// Length in bytes of the first word of a text that is not empty.
fn first_word(text: &str) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if text.starts_with('\'')
        && let Some(word) = CONTRACTIONS.iter().find(|word| text.starts_with(**word))
    {
        return word.len();
    }
    // One leading blank belongs to the word behind it.
    let blank = usize::from(text.starts_with(' '));
    if let Some(first) = text[blank..].chars().next()
        && kind(first) != Kind::Space
    {
        return blank + run(&text[blank..], kind(first));
    }
    let spaces = run(text, Kind::Space);
    let last = text[..spaces].chars().next_back().map_or(0, char::len_utf8);
    // The last white space before a word is left to that word, if it is not the only one.
    if spaces < text.len() && spaces > last { spaces - last } else { spaces }
}

/// Length in bytes of the leading characters of one kind.
fn run(text: &str, wanted: Kind) -> usize {
    let end = text.char_indices().find(|(_, character)| kind(*character) != wanted);
    end.map_or(text.len(), |(at, _)| at)
}

/// Calls `word` for every word of `text`. With `digits`, every number character is a word of its
/// own and words are found in the stretches between.
pub(super) fn words<E>(
    text: &str,
    digits: bool,
    mut word: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = text;
    while !rest.is_empty() {
        let digit = match digits {
            true => rest.find(char::is_numeric).unwrap_or(rest.len()),
            false => rest.len(),
        };
        let (mut stretch, after) = rest.split_at(digit);
        while !stretch.is_empty() {
            let (first, others) = stretch.split_at(first_word(stretch));
            word(first)?;
            stretch = others;
        }
        let length = after.chars().next().map_or(0, char::len_utf8);
        let (digit, others) = after.split_at(length);
        if !digit.is_empty() {
            word(digit)?;
        }
        rest = others;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, digits: bool) -> Vec<&str> {
        let mut lengths = Vec::new();
        words(text, digits, |word| {
            lengths.push(word.len());
            Ok::<(), ()>(())
        })
        .unwrap();
        let mut rest = text;
        lengths
            .into_iter()
            .map(|length| {
                let (word, others) = rest.split_at(length);
                rest = others;
                word
            })
            .collect()
    }

    #[test]
    fn words_of_the_expression() {
        assert_eq!(split("it's  we'll'", false), ["it", "'s", " ", " we", "'ll", "'"]);
        assert_eq!(split("a\n    b(1, 23)", true).len(), 10);
        assert_eq!(split("a\n    b", false), ["a", "\n   ", " b"]);
        assert_eq!(split("x \n", false), ["x", " \n"]);
        assert_eq!(split("x\t= 5", true), ["x", "\t", "=", " ", "5"]);
        assert_eq!(split(" 12 x", false), [" 12", " x"]);
        assert_eq!(split("é\u{301}\u{a0}½", false), ["é", "\u{301}", "\u{a0}", "½"]);
        assert!(split("", true).is_empty());
    }
}

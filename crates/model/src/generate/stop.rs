//! Stop strings in a stream of text pieces.
//!
//! Text that may be the beginning of a stop string is held back until it is clear whether it is. What
//! is released never holds a stop string, nor the beginning of one that came true.

use crate::{Error, Result};

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 1024;

/// Looks for stop strings in text that comes in pieces.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Checks the strings.
    ///
    /// # Errors
    /// An empty or very long string, or too many.
    pub fn new(strings: &[String]) -> Result<Self> {
        if strings.len() > MAX_STOP_STRINGS {
            let valid = format!("at most {MAX_STOP_STRINGS}");
            return Err(Error::argument("number of stop strings", strings.len(), valid));
        }
        let valid = format!("1 to {MAX_STOP_BYTES} bytes");
        match strings.iter().find(|string| string.is_empty() || string.len() > MAX_STOP_BYTES) {
            Some(bad) => {
                Err(Error::argument("stop string", format!("{} bytes long", bad.len()), valid))
            }
            None => Ok(Self { strings: strings.to_vec(), held: String::new() }),
        }
    }

    /// Takes the next piece and returns what may be shown, and whether a stop string was completed.
    /// After that nothing more should be pushed.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        let found = self.strings.iter().filter_map(|string| self.held.find(string.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.strings.iter().map(|string| overlap(&self.held, string)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the stream: what was held back is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `string` without being all of it.
fn overlap(text: &str, string: &str) -> usize {
    let longest = text.len().min(string.len().saturating_sub(1));
    let ends =
        |&length: &usize| string.as_bytes()[..length] == text.as_bytes()[text.len() - length..];
    (1..=longest).rev().find(ends).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::rng::Rng;

    /// Random pieces over two letters, so that strings overlap themselves and each other, against a
    /// search of all text after every piece.
    #[test]
    fn pieces_and_plain_search_agree() {
        let rng = Rng::new(11, 0);
        let mut hits = 0;
        for round in 0..4000u64 {
            let mut drawn = 0;
            let mut draw = |most: usize| {
                drawn += 1;
                rng.words(round * 1000 + drawn)[0] as usize % most
            };
            let letters = ["a", "b", "é", "aa"];
            let mut text = |most: usize| -> String {
                (0..1 + draw(most)).map(|_| letters[draw(letters.len())]).collect()
            };
            let strings = vec![text(4), text(6), text(3)];
            let pieces: Vec<String> = (0..12).map(|_| text(3)).collect();
            let (mut whole, mut expected) = (String::new(), None);
            for piece in &pieces {
                whole += piece;
                expected = strings.iter().filter_map(|string| whole.find(string.as_str())).min();
                if expected.is_some() {
                    break;
                }
            }
            let mut stop = StopStrings::new(&strings).unwrap();
            let (mut shown, mut stopped) = (String::new(), false);
            for piece in &pieces {
                let (released, found) = stop.push(piece);
                shown += &released;
                stopped = found;
                if found {
                    break;
                }
                assert!(strings.iter().all(|string| !shown.contains(string.as_str())));
            }
            shown += &stop.finish();
            hits += usize::from(stopped);
            assert_eq!(stopped, expected.is_some());
            assert_eq!(shown, whole[..expected.unwrap_or(whole.len())], "{strings:?} {pieces:?}");
        }
        assert!((500..4000).contains(&hits), "{hits} of 4000 rounds stopped");
    }

    #[test]
    fn text_is_held_no_longer_than_needed() {
        let mut stop = StopStrings::new(&["END".into()]).unwrap();
        assert_eq!(stop.push("a E"), ("a ".into(), false));
        assert_eq!(stop.push("N"), ("".into(), false));
        assert_eq!(stop.push("!E"), ("EN!".into(), false));
        assert_eq!(stop.push("ND tail"), ("".into(), true));
        let mut none = StopStrings::default();
        assert_eq!(none.push("abc"), ("abc".into(), false));
    }

    #[test]
    fn bad_strings_are_refused() {
        let message = |strings: &[String]| StopStrings::new(strings).unwrap_err().to_string();
        assert!(message(&["".into()]).contains("stop string is 0 bytes long"));
        assert!(message(&["x".repeat(1025)]).contains("1 to 1024 bytes"));
        assert!(message(&vec!["x".into(); 17]).contains("at most 16"));
    }
}

//! Which tokens end a text.

use crate::checkpoint::SpecialTokens;
use danaus_text::tokenizer::Tokenizer;

/// The tokens that end a text: those that the model's files name (see [`SpecialTokens`]), else what
/// the tokenizer calls the end.
pub fn eos_tokens(special: &SpecialTokens, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    if !special.eos.is_empty() {
        return special.eos.clone();
    }
    let end = tokenizer.and_then(|tokenizer| tokenizer.eos().or_else(|| tokenizer.end_of_text()));
    end.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_files_or_the_tokenizer() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine/llama-gqa");
        let tokenizer = Tokenizer::load(Path::new(golden)).unwrap();
        let named = SpecialTokens { eos: vec![2, 1], ..SpecialTokens::default() };
        assert_eq!(eos_tokens(&named, Some(&tokenizer)), [2, 1]);
        let silent = SpecialTokens::default();
        assert_eq!(eos_tokens(&silent, Some(&tokenizer)), [2], "eos_token of its config");
        let bare = Tokenizer::from_json(tokenizer.json()).unwrap();
        assert_eq!(eos_tokens(&silent, Some(&bare)), [0], "the spelling of the end of a text");
        assert!(eos_tokens(&silent, None).is_empty());
    }
}

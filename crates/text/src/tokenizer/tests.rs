use super::*;

fn golden_in(folder: &str, name: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/");
    std::fs::read_to_string(format!("{root}{folder}/{name}")).unwrap()
}

fn golden(name: &str) -> String {
    golden_in("29-starcoder", name)
}

fn starcoder() -> Tokenizer {
    Tokenizer::from_json(golden("tiny-starcoder/tokenizer.json")).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check_golden(tokenizer: &Tokenizer, cases: &str) {
    let cases: serde_json::Value = serde_json::from_str(cases).unwrap();
    let cases = cases["encode"].as_array().unwrap();
    assert!(cases.len() > 5);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let (with, plain) = (ids(&case["ids_with_special"]), ids(&case["ids_without_special"]));
        assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "{text:?}");
        // The texts are those of the tokens without what a template adds at the ends.
        let kept = tokenizer.decode(&plain, false).unwrap();
        assert_eq!(kept, case["decode_keep_special"].as_str().unwrap());
        let skipped = tokenizer.decode(&plain, true).unwrap();
        assert_eq!(skipped, case["decode_skip_special"].as_str().unwrap());
        let mut stream = tokenizer.detokenizer(false);
        let pieces: String = plain.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces + &stream.finish(), kept);
    }
}

/// GPT-2's splitter, and Llama 3's with a template that adds the beginning of a text.
#[test]
fn golden_encode_and_decode_of_the_engine() {
    for (folder, cases) in [
        ("llama-gqa", "llama-gqa.text.json"),
        ("llama-gqa", "opt.text.json"),
        ("llama-gqa", "mamba.text.json"),
        ("llama-gqa", "mamba2.text.json"),
        ("llama3-rope-tied-bf16", "llama3-rope-tied-bf16.text.json"),
    ] {
        let json = golden_in("40-engine", &format!("{folder}/tokenizer.json"));
        check_golden(&Tokenizer::from_json(json).unwrap(), &golden_in("40-engine", cases));
    }
}

#[test]
fn golden_encode_and_decode() {
    let tokenizer = starcoder();
    check_golden(&tokenizer, &golden("tiny-starcoder.text.json"));
    for (id, token) in (0..).zip(STARCODER_SPECIAL_TOKENS) {
        assert_eq!(tokenizer.token_to_id(token), Some(id));
        assert!(tokenizer.is_special(id));
    }
}

#[test]
fn special_spelling_in_a_document_is_plain_text() {
    let tokenizer = starcoder();
    let text = "let eot = \"<|endoftext|>\";";
    let ids = tokenizer.encode_ordinary(text).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert!(tokenizer.encode(text, false).unwrap().contains(&0));
}

#[test]
fn any_bytes_survive_and_streaming_equals_decoding() {
    let tokenizer = starcoder();
    let mut document = "naïve — こんにちは 🦀 e\u{301}\n".as_bytes().to_vec();
    document.extend((0..=255u8).rev());
    document.extend(b"\xE3\x81 cut \xF0\x9F\xA6");
    let ids = tokenizer.encode_bytes(&document).unwrap();
    assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), document);
    let lengths = tokenizer.byte_lengths();
    assert_eq!(ids.iter().map(|&id| lengths[id as usize] as usize).sum::<usize>(), document.len());

    let mut stream = tokenizer.detokenizer(false);
    let mut text = String::new();
    for &id in &ids {
        text += &stream.push(id).unwrap();
    }
    text += &stream.finish();
    assert_eq!(text, tokenizer.decode(&ids, false).unwrap());
}

#[test]
fn streaming_holds_back_half_of_a_character() {
    let tokenizer = starcoder();
    let crab: Vec<u32> = tokenizer.encode_ordinary("🦀!").unwrap();
    let mut stream = tokenizer.detokenizer(true);
    let pieces: Vec<String> = crab.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert_eq!(pieces.concat(), "🦀!");
}

/// The fast path against the `tokenizers` crate: the sources of this crate, and 3000 random strings
/// over characters that the splitter treats differently.
#[test]
fn fast_path_equals_the_library() {
    let sources = [include_str!("mod.rs"), include_str!("split.rs"), include_str!("tests.rs")];
    let options = TrainOptions { vocab_size: 900, ..TrainOptions::default() };
    let trained = Tokenizer::train(&sources, &options).unwrap();
    let alphabet: Vec<char> =
        " \t\n\r\u{a0}\u{2003}'stremvld09½²Ⅷ٣aZéßñ\u{301}你こ🦀_(+=<|>".chars().collect();
    let mut rng = crate::rng::Rng::new(1, 0);
    let random: Vec<String> = (0..3000)
        .map(|_| {
            let mut letter = || alphabet[rng.up_to(alphabet.len() as u64 - 1) as usize];
            let unit: String = (0..12).map(|_| letter()).collect();
            unit.replace('_', "    ").replace('(', "\n\n")
        })
        .collect();
    let long = ["=".repeat(5000), " ".repeat(300) + "x", "<|endoftext|><fim_pad>".to_string()];
    for tokenizer in [trained, starcoder()] {
        assert!(tokenizer.inner.fast.is_some());
        let texts = sources.map(String::from).into_iter().chain(random.clone()).chain(long.clone());
        for text in texts {
            let expected = tokenizer.encode_by_library(&text).unwrap();
            assert_eq!(tokenizer.encode_ordinary(&text).unwrap(), expected, "{text:?}");
        }
    }
}

#[test]
fn unusual_files_have_no_fast_path() {
    let json = golden("tiny-starcoder/tokenizer.json");
    for (from, to) in [
        ("\"individual_digits\": true", "\"individual_digits\": false"),
        ("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"),
        ("\"special\": true", "\"special\": false"),
        ("\"ignore_merges\": false", "\"ignore_merges\": true"),
    ] {
        assert!(json.contains(from), "{from}");
        let tokenizer = Tokenizer::from_json(json.replace(from, to)).unwrap();
        assert!(tokenizer.inner.fast.is_none(), "{to}");
        let ids = tokenizer.encode_ordinary("def f_12()").unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "def f_12()");
    }
}

#[test]
fn training_is_repeatable_and_splits_digits() {
    let documents: Vec<String> = (0..200)
        .map(|i| format!("fn item_{i}(value: u32) -> u32 {{\n    value + {i}{i}\n}}\n"))
        .collect();
    let options = TrainOptions { vocab_size: 400, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&documents, &options).unwrap();
    assert_eq!(tokenizer.digest(), Tokenizer::train(&documents, &options).unwrap().digest());
    assert!((290..=400).contains(&tokenizer.vocab_size()));
    assert_eq!(tokenizer.end_of_text(), Some(0));
    assert_eq!(tokenizer.token_to_id("<reponame>"), Some(18));
    assert_eq!(tokenizer.encode_ordinary("12345").unwrap().len(), 5);
    let whole: usize = documents.iter().map(String::len).sum();
    let tokens: usize =
        documents.iter().map(|text| tokenizer.encode_ordinary(text).unwrap().len()).sum();
    assert!(tokens * 3 < whole * 2, "{tokens} tokens for {whole} bytes");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    tokenizer.save(&path).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded.digest(), tokenizer.digest());
    assert_eq!(
        loaded.encode_ordinary(&documents[7]).unwrap(),
        tokenizer.encode_ordinary(&documents[7]).unwrap()
    );
}

#[test]
fn bad_arguments_are_named() {
    let tokenizer = starcoder();
    let error = tokenizer.decode(&[1_000_000], false).unwrap_err().to_string();
    assert!(error.contains("token id") && error.contains("1000000"), "{error}");
    let options = TrainOptions { vocab_size: 100, ..TrainOptions::default() };
    let error = Tokenizer::train(&["text"], &options).err().unwrap().to_string();
    assert!(error.contains("vocab_size") && error.contains("275"), "{error}");
    assert!(Tokenizer::from_json("{}").is_err());
    let plain = golden("tiny-starcoder/tokenizer.json").replace("\"ByteLevel\"", "\"Fuse\"");
    assert!(Tokenizer::from_json(plain).is_err());
    assert!(matches!(Tokenizer::load(Path::new("/nowhere/tokenizer.json")), Err(Error::Io { .. })));
}

/// `add_bos_token` wins over the template of `tokenizer.json`, and no prompt begins twice.
#[test]
fn the_beginning_of_a_text_is_added_once() {
    let with_template = golden_in("40-engine", "llama3-rope-tied-bf16/tokenizer.json");
    let without = golden_in("40-engine", "llama-gqa/tokenizer.json");
    for (json, by_template) in [(with_template, true), (without, false)] {
        for add_bos in [None, Some(true), Some(false)] {
            let bos = Some("<|endoftext|>".to_string());
            let settings = Settings { bos, add_bos, ..Settings::default() };
            let tokenizer = Tokenizer::from_json(json.as_str()).unwrap();
            let tokenizer = tokenizer.with_settings(settings).unwrap();
            let plain = tokenizer.encode("Hello", false).unwrap();
            let once = [&[0], plain.as_slice()].concat();
            let expected = if add_bos.unwrap_or(by_template) { &once } else { &plain };
            assert_eq!(&tokenizer.encode("Hello", true).unwrap(), expected);
            assert_eq!(&tokenizer.encode_prompt("Hello").unwrap(), expected);
            assert_eq!(tokenizer.encode_prompt("<|endoftext|>Hello").unwrap(), once);
        }
    }
    let settings = Settings { add_bos: Some(true), ..Settings::default() };
    let error = starcoder().with_settings(settings).err().unwrap().to_string();
    assert!(error.contains("bos_token") && error.contains("absent"), "{error}");
}

/// Pieces of random tokens: together the decoded text, and never half of a character.
#[test]
fn streamed_random_tokens_equal_the_decoded_text() {
    let tokenizer = starcoder();
    let singles: Vec<u32> =
        (0..=255).filter_map(|byte| tokenizer.inner.bytes.single(byte)).collect();
    let mut rng = crate::rng::Rng::new(7, 0);
    for round in 0..2000 {
        let length = rng.up_to(12);
        let ids: Vec<u32> = (0..length)
            .map(|_| match round % 3 {
                0 => rng.up_to(tokenizer.vocab_size() as u64 - 1) as u32,
                1 => singles[rng.up_to(255) as usize],
                // Lead and continuation bytes, which make characters now and then.
                _ => singles[128 + rng.up_to(127) as usize],
            })
            .collect();
        let mut stream = tokenizer.detokenizer(false);
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(id).unwrap();
        }
        text += &stream.finish();
        assert_eq!(text, tokenizer.decode(&ids, false).unwrap(), "{ids:?}");
    }
}

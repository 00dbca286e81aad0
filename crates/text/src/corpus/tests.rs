use std::fs;
use std::path::Path;

use super::*;
use crate::Error;

fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn code(tag: usize) -> String {
    format!("/// Adds {tag}.\npub fn add_{tag}(value: u32) -> u32 {{\n    value + {tag}\n}}\n")
        .repeat(4)
}

/// A cargo home with 12 crates, one of them in two versions, and some unwanted files.
fn registry() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let src = home.path().join("registry/src/index.example-0123456789abcdef");
    for package in 0..12 {
        for file in 0..5 {
            let name = format!("crate-{package}-1.2.{package}/src/file_{file}.rs");
            write(&src, &name, code(package * 100 + file));
        }
    }
    write(&src, "crate-3-2.0.0-rc.1/src/lib.rs", code(9000));
    write(&src, "crate-3-2.0.0-rc.1/src/copy.rs", code(300));
    write(&src, "crate-4-1.2.4/minified.rs", format!("let x = \"{}\";", "a".repeat(2000)));
    write(&src, "crate-4-1.2.4/data.rs", "[-, -], {}, (), ;;,\n".repeat(40));
    write(&src, "crate-4-1.2.4/latin1.rs", b"// caf\xE9\nfn main() {}\n");
    write(&src, "crate-4-1.2.4/.git/config.toml", "hidden = true");
    write(&src, "crate-4-1.2.4/huge.rs", code(1).repeat(20_000));
    write(&src, "crate-4-1.2.4/picture.png", [0x89, b'P']);
    home
}

#[test]
fn registry_is_filtered_and_repeatable() {
    let home = registry();
    let options = GatherOptions::new(Source::CargoRegistry(home.path().into()));
    let corpus = Corpus::gather(&options).unwrap();
    assert_eq!(corpus.report.documents, 61);
    assert_eq!(corpus.report.groups, 12);
    let rejected = |reason| corpus.report.rejected.get(&reason).copied().unwrap_or(0);
    for reason in [
        Rejection::LongLine,
        Rejection::FewLetters,
        Rejection::NotUtf8,
        Rejection::TooLarge,
        Rejection::Extension,
        Rejection::Copy,
    ] {
        assert_eq!(rejected(reason), 1, "{reason}");
    }
    assert!(corpus.documents.iter().all(|document| !document.name.contains("index.example")));
    assert_eq!(corpus.documents, Corpus::gather(&options).unwrap().documents);
}

#[test]
fn a_small_budget_takes_from_every_crate() {
    let home = registry();
    let mut options = GatherOptions::new(Source::CargoRegistry(home.path().into()));
    options.max_bytes = 13 * code(100).len() as u64;
    let corpus = Corpus::gather(&options).unwrap();
    assert!(corpus.report.bytes <= options.max_bytes);
    assert_eq!(corpus.report.groups, 12, "{}", corpus.report);
    options.seed = 1;
    assert_ne!(corpus.documents, Corpus::gather(&options).unwrap().documents);
}

#[test]
fn split_keeps_crates_whole() {
    let home = registry();
    let options = GatherOptions::new(Source::CargoRegistry(home.path().into()));
    let corpus = Corpus::gather(&options).unwrap();
    for fraction in [0.001, 0.3, 0.999] {
        let split = corpus.clone().split(fraction, 5).unwrap();
        assert_eq!(split.train.len() + split.validation.len(), corpus.documents.len());
        assert!(!split.train.is_empty() && !split.validation.is_empty());
        for document in &split.validation {
            assert!(split.train.iter().all(|other| other.group != document.group));
        }
    }
    assert!(corpus.split(0.0, 5).is_err());
}

#[test]
fn versions_are_cut_off_package_names() {
    use super::source::package_name;
    assert_eq!(package_name("serde-1.0.229"), "serde");
    assert_eq!(package_name("tokenizers-1.0.0-rc.3"), "tokenizers");
    assert_eq!(package_name("windows-sys-0.59.0+wasi-0.2"), "windows-sys");
    assert_eq!(package_name("utf-8-0.7.6"), "utf-8");
    assert_eq!(package_name("not-versioned"), "not-versioned");
}

#[test]
fn encodings_follow_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "good.txt", "a text that is long enough\nwith two lines\n");
    write(folder.path(), "latin1.txt", b"caf\xE9 au lait\n");
    let mut options = GatherOptions::new(Source::Path(folder.path().into()));
    let error = Corpus::gather(&options).unwrap_err();
    assert!(matches!(&error, Error::NotUtf8 { offset: 3, path } if path.ends_with("latin1.txt")));
    options.not_utf8 = NotUtf8::Bytes;
    let corpus = Corpus::gather(&options).unwrap();
    assert_eq!(corpus.documents[1].bytes, b"caf\xE9 au lait\n");
    options.not_utf8 = NotUtf8::Skip;
    assert_eq!(Corpus::gather(&options).unwrap().documents.len(), 1);
}

#[test]
fn one_file_is_taken_whole_and_cut_at_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let text = "word ".repeat(400) + "\n" + &"line\n".repeat(1600);
    write(folder.path(), "book.unknown", &text);
    let options = GatherOptions::new(Source::Path(folder.path().join("book.unknown")));
    let corpus = Corpus::gather(&options).unwrap();
    let split = corpus.split(0.1, 0).unwrap();
    let (train, validation) = (&split.train[0].bytes, &split.validation[0].bytes);
    assert_eq!([train.as_slice(), validation].concat(), text.as_bytes());
    assert!(train.ends_with(b"\n") && (900..=1010).contains(&validation.len()));
    write(folder.path(), "short", "no line end");
    let options = GatherOptions::new(Source::Path(folder.path().join("short")));
    assert!(Corpus::gather(&options).unwrap().split(0.1, 0).is_err());
}

#[test]
fn nothing_to_read_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "empty.rs", "  \n");
    write(folder.path(), "picture.png", [1, 2, 3]);
    let error = Corpus::gather(&GatherOptions::new(Source::Path(folder.path().into())));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("no documents in") && message.contains("1 empty"), "{message}");
    assert!(message.contains("1 with other extensions"), "{message}");
    let missing = folder.path().join("missing");
    let error = Corpus::gather(&GatherOptions::new(Source::Path(missing))).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("missing"));
}

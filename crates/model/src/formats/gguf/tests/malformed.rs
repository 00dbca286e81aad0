//! Every malformed header is its own error, and none costs memory.

use super::super::reader::parse_bytes;
use super::*;

/// A file by hand: anything can be wrong.
#[derive(Clone)]
struct Hand {
    version: u32,
    counts: Option<(u64, u64)>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name.as_bytes()), &kind.to_le_bytes()[..], value].concat()
}

fn tensor(name: &str, sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let sizes_bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    let rank = (sizes.len() as u32).to_le_bytes();
    let (kind, offset) = (kind.to_le_bytes(), offset.to_le_bytes());
    [&text(name.as_bytes()), &rank[..], &sizes_bytes, &kind, &offset].concat()
}

impl Hand {
    /// One tensor of eight floats.
    fn good() -> Self {
        let tensors = vec![tensor("t", &[8], 0, 0)];
        Self { version: 3, counts: None, keys: Vec::new(), tensors, data: 32 }
    }

    fn bytes(&self) -> Vec<u8> {
        let (tensors, keys) =
            self.counts.unwrap_or((self.tensors.len() as u64, self.keys.len() as u64));
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    fn fault(&self) -> Fault {
        parse_bytes(&self.bytes()).err().expect("a fault")
    }

    fn key(self, name: &str, kind: u32, value: &[u8]) -> Self {
        Self { keys: [self.keys, vec![key(name, kind, value)]].concat(), ..self }
    }

    fn tensors(self, tensors: &[Vec<u8>]) -> Self {
        Self { tensors: tensors.to_vec(), ..self }
    }
}

#[test]
fn a_file_by_hand_is_read() {
    let file = parse_bytes(&Hand::good().bytes()).unwrap();
    assert_eq!(file.info("t").unwrap().shape(), [8]);
}

#[test]
fn magic_and_version() {
    assert_eq!(parse_bytes(b"").err(), Some(Fault::NotGguf));
    assert_eq!(parse_bytes(b"GGML\x03\0\0\0").err(), Some(Fault::NotGguf));
    for version in [0, 1, 2, 4] {
        assert_eq!(Hand { version, ..Hand::good() }.fault(), Fault::Version(version));
    }
    let fault = Hand { version: 3u32.swap_bytes(), ..Hand::good() }.fault();
    assert_eq!(fault, Fault::BigEndian);
}

#[test]
fn every_cut_is_an_error() {
    let hand = Hand::good().key("general.name", 8, &text(b"x")).key(
        "list",
        9,
        &[&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat(),
    );
    let bytes = hand.bytes();
    assert!(parse_bytes(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(parse_bytes(&bytes[..len]).is_err(), "cut at {len}");
    }
    let Fault::Truncated { what, .. } = parse_bytes(&bytes[..30]).err().unwrap() else { panic!() };
    assert_eq!(what, "keys");
}

#[test]
fn counts_are_checked_against_the_length_and_limits() {
    let counts = |tensors, keys| Hand { counts: Some((tensors, keys)), ..Hand::good() }.fault();
    assert_eq!(counts(1, 65_537), Fault::Count { what: "keys", count: 65_537, limit: 65_536 });
    let limit = 262_144;
    assert_eq!(counts(u64::MAX, 0), Fault::Count { what: "tensors", count: u64::MAX, limit });
    assert!(matches!(counts(1, 60_000), Fault::Truncated { what: "keys", .. }));
    assert!(matches!(counts(200_000, 0), Fault::Truncated { what: "tensors", .. }));
}

#[test]
fn keys_and_values() {
    let good = Hand::good;
    assert_eq!(good().key("a", 13, &[]).fault(), Fault::ValueType { key: "a".into(), found: 13 });
    assert_eq!(good().key("b", 7, &[2]).fault(), Fault::Truth { key: "b".into(), found: 2 });
    assert_eq!(good().key("c", 0, &[1]).key("c", 0, &[1]).fault(), Fault::DuplicateKey("c".into()));
    assert!(matches!(
        good().key("", 0, &[1]).fault(),
        Fault::NameLength { what: "a key", len: 0, .. }
    ));
    assert!(matches!(
        good().key(&"k".repeat(65_536), 0, &[1]).fault(),
        Fault::NameLength { what: "a key", len: 65_536, .. }
    ));
    assert!(matches!(
        good().key("d", 8, &text(b"\xff")).fault(),
        Fault::NotUtf8 { what: "a text value", .. }
    ));
    let array = |kind: u32, count: u64, items: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
    };
    assert_eq!(
        good().key("e", 9, &array(99, 0, &[])).fault(),
        Fault::ValueType { key: "e".into(), found: 99 }
    );
    for kind in [0, 8, 9, 12] {
        let fault = good().key("f", 9, &array(kind, 1 << 61, &[])).fault();
        assert!(matches!(fault, Fault::Truncated { what: "an array", .. }), "{fault}");
    }
    let deep = (0..5).fold(Vec::new(), |inner, _| array(9, 1, &inner));
    assert_eq!(good().key("g", 9, &deep).fault(), Fault::Depth { key: "g".into(), limit: 4 });
    for alignment in [0u32, 3, 4, 48, 1 << 17] {
        let fault = good().key("general.alignment", 4, &alignment.to_le_bytes()).fault();
        assert_eq!(fault, Fault::Alignment(u64::from(alignment)));
    }
    assert_eq!(
        good().key("general.alignment", 6, &[0; 4]).fault(),
        Fault::KeyType {
            key: "general.alignment".into(),
            found: ValueType::F32,
            expected: "an integer"
        }
    );
}

#[test]
fn tensors_that_cannot_be() {
    let fault = |tensors: &[Vec<u8>]| Hand::good().tensors(tensors).fault();
    let name = || "t".to_string();
    assert_eq!(fault(&[tensor("t", &[], 0, 0)]), Fault::Rank { name: name(), rank: 0 });
    assert_eq!(fault(&[tensor("t", &[1; 5], 0, 0)]), Fault::Rank { name: name(), rank: 5 });
    for sizes in [vec![0], vec![2, 0], vec![1 << 40, 1 << 40], vec![1 << 62]] {
        assert_eq!(fault(&[tensor("t", &sizes, 0, 0)]), Fault::Sizes { name: name(), sizes });
    }
    let unknown = fault(&[tensor("t", &[8], 9, 0)]);
    assert_eq!(unknown, Fault::TensorType { name: name(), found: 9 });
    let message = unknown.to_string();
    assert!(message.contains("0 (f32), 1 (f16), 2 (q4_0)") && message.contains("39 (mxfp4)"));
    assert_eq!(
        fault(&[tensor("t", &[33], 8, 0)]),
        Fault::Block { name: name(), kind: "q8_0", cols: 33, block: 32 }
    );
    assert_eq!(
        fault(&[tensor("t", &[2], 0, 8)]),
        Fault::Misaligned { name: name(), offset: 8, alignment: 32 }
    );
    assert_eq!(
        fault(&[tensor("t", &[9], 0, 0)]),
        Fault::OutOfRange { name: name(), offset: 0, end: 36, available: 32 }
    );
    assert_eq!(
        fault(&[tensor("t", &[1], 0, 1 << 60)]),
        Fault::OutOfRange { name: name(), offset: 1 << 60, end: (1 << 60) + 4, available: 32 }
    );
    let pair = [tensor("t", &[2], 0, 0), tensor("u", &[2], 0, 0)];
    assert_eq!(fault(&pair), Fault::Overlap("t".into(), "u".into()));
    let twice = [tensor("t", &[2], 0, 0), tensor("t", &[2], 0, 32)];
    let fault = Hand { data: 64, ..Hand::good().tensors(&twice) }.fault();
    assert_eq!(fault, Fault::DuplicateTensor("t".into()));
}

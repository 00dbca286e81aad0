//! Files written by PyTorch, and every way to spoil one.

use super::*;
use danaus_tensor::safetensors::TensorFile;
use danaus_testkit::archive::stored_zip;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/formats")
}

/// The fault of a committed file.
fn fault_of(name: &str) -> Fault {
    match TorchFile::open(folder().join(name)) {
        Err(Error::Torch { fault, .. }) => fault,
        Err(other) => panic!("{name}: {other}"),
        Ok(_) => panic!("{name} is accepted"),
    }
}

/// What becomes of an archive with this pickle and eight floats as storage 0.
fn with_pickle(pickle: &[u8]) -> std::result::Result<BTreeMap<String, Entry>, Fault> {
    entries(&stored_zip(&[("x/data.pkl", pickle), ("x/data/0", &[0; 32])]))
}

/// The pickle `{"w": tensor}` for a view of eight floats in storage `key`.
fn one_tensor(key: &str, elements: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text = |text: &str| [b"\x8c".as_slice(), &[text.len() as u8], text.as_bytes()].concat();
    let number = |value: u8| vec![b'K', value];
    let tuple = |values: &[u8]| {
        let items = values.iter().flat_map(|&value| number(value));
        [b"(".to_vec(), items.collect(), b"t".to_vec()].concat()
    };
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(key),
        text("cpu"),
        number(elements),
        b"tQ".to_vec(),
        number(offset),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn files_of_torch_hold_what_torch_says() {
    let expected = TensorFile::open(folder().join("state.safetensors")).unwrap();
    for name in ["state.bin", "state-protocol4.bin"] {
        let source = TorchSource::open(folder().join(name)).unwrap();
        assert_eq!(source.names(), expected.names(), "{name}");
        for tensor in source.names() {
            let (found, wanted) =
                (source.tensor(&tensor).unwrap().unwrap(), expected.tensor(&tensor).unwrap());
            assert_eq!(found.shape(), wanted.shape(), "{name}: {tensor}");
            assert_eq!(found.dtype(), wanted.dtype(), "{name}: {tensor}");
            assert_eq!(found.as_bytes().unwrap(), wanted.as_bytes().unwrap(), "{name}: {tensor}");
        }
        assert!(source.tensor("absent").unwrap().is_none());
    }
}

#[test]
fn whole_tensors_are_views_of_the_file() {
    let file = TorchFile::open(folder().join("state.bin")).unwrap();
    let map = file.map.as_ptr_range();
    for (name, mapped) in [("whole", true), ("tied", true), ("transposed", false), ("part", false)]
    {
        let tensor = file.read(&file.entries()[name]).unwrap();
        assert_eq!(map.contains(&tensor.as_bytes().unwrap().as_ptr()), mapped, "{name}");
    }
}

#[test]
fn module_metadata_is_left_out() {
    let file = TorchFile::open(folder().join("module.bin")).unwrap();
    let shapes: Vec<_> =
        file.entries().iter().map(|(n, e)| (n.as_str(), e.shape.clone())).collect();
    assert_eq!(shapes, [("bias", vec![2]), ("weight", vec![2, 3])]);
}

#[test]
fn no_code_runs_and_the_refused_function_is_named() {
    let fault = fault_of("poisoned.bin");
    assert_eq!(fault, Fault::Global("posix.system".into()));
    assert!(fault.to_string().contains("posix.system"), "{fault}");
    assert!(!folder().join("poisoned").exists() && !Path::new("poisoned").exists());
    let fault = fault_of("whole-module.bin");
    assert_eq!(fault, Fault::Global("torch.nn.modules.linear.Linear".into()));
}

#[test]
fn other_files_of_torch_are_refused_with_a_remedy() {
    assert_eq!(fault_of("legacy.bin"), Fault::Legacy);
    assert!(Fault::Legacy.to_string().contains("torch.save(torch.load("));
    let nested = Fault::NotTensor { name: "state_dict".into(), kind: "a dictionary" };
    assert_eq!(fault_of("nested.bin"), nested);
    let Fault::Tensor { why, .. } = fault_of("expanded.bin") else { panic!("expanded.bin") };
    assert_eq!(why, "has more elements than its storage of 1");
    assert!(matches!(fault_of("make.py"), Fault::NotZip(_)));
}

#[test]
fn damaged_archives_are_refused_by_name() {
    let good = one_tensor("0", 8, 0, &[2, 4], &[4, 1]);
    let data: (&str, &[u8]) = ("x/data/0", &[0; 32]);
    let refused = |entries_of: &[(&str, &[u8])]| entries(&stored_zip(entries_of)).unwrap_err();
    assert!(entries(&stored_zip(&[("x/data.pkl", &good), data])).is_ok());
    assert_eq!(refused(&[data]), Fault::NoPickle);
    assert_eq!(refused(&[("data.pkl", &good), data]), Fault::NoPickle);
    assert_eq!(
        refused(&[("x/data.pkl", &good), ("y/data.pkl", &good)]),
        Fault::TwoPickles("x/data.pkl".into(), "y/data.pkl".into())
    );
    assert_eq!(
        refused(&[("x/data.pkl", &good), ("x/data.pkl", &good)]),
        Fault::DuplicateEntry("x/data.pkl".into())
    );
    assert_eq!(
        refused(&[("x/data.pkl", &good), data, data]),
        Fault::DuplicateEntry("x/data/0".into())
    );
    assert_eq!(refused(&[("x/data.pkl", &good)]), Fault::NoStorage("0".into()));
    assert_eq!(
        refused(&[("x/data.pkl", &good), ("x/data/0", &[0; 31])]),
        Fault::StorageSize { key: "0".into(), found: 31, expected: 32 }
    );
    assert_eq!(
        refused(&[("x/byteorder", b"big"), ("x/data.pkl", &good), data]),
        Fault::ByteOrder("big".into())
    );
    assert_eq!(refused(&[("x/constants.pkl", b""), ("x/data.pkl", &good)]), Fault::TorchScript);
    let mut compressed = stored_zip(&[("x/data.pkl", &good), data]);
    let entry = compressed.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    compressed[entry + 10] = 8;
    assert!(matches!(entries(&compressed).unwrap_err(), Fault::Compressed { .. }));
    let whole = stored_zip(&[("x/data.pkl", &good), data]);
    for len in 0..whole.len() {
        assert!(entries(&whole[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn views_outside_of_their_storage_are_refused() {
    let why = |elements, offset, shape: &[u8], strides: &[u8]| match with_pickle(&one_tensor(
        "0", elements, offset, shape, strides,
    )) {
        Err(Fault::Tensor { why, .. }) => why,
        Ok(_) => "accepted".into(),
        Err(other) => other.to_string(),
    };
    assert_eq!(why(8, 0, &[4, 2], &[1, 4]), "accepted");
    assert_eq!(why(8, 7, &[], &[]), "accepted");
    assert_eq!(why(8, 8, &[], &[]), "reaches beyond its storage of 8 elements");
    assert_eq!(why(8, 1, &[2, 4], &[4, 1]), "reaches beyond its storage of 8 elements");
    assert_eq!(why(8, 0, &[2, 2], &[7, 1]), "reaches beyond its storage of 8 elements");
    assert_eq!(why(8, 0, &[9], &[0]), "has more elements than its storage of 8");
    assert_eq!(why(8, 0, &[255; 16], &[255; 16]), "has more elements than its storage of 8");
    assert_eq!(why(8, 0, &[2, 4], &[4]), "has another number of strides than of dimensions");
    assert_eq!(why(9, 0, &[2, 4], &[4, 1]), "storage 0 has 32 bytes, the pickle says 36");
    assert!(why(8, 0, &[1; 17], &[1; 17]).contains("no tuple of up to 16 dimensions"));
}

#[test]
fn damaged_pickles_are_refused_by_name() {
    let good = one_tensor("0", 8, 0, &[2, 4], &[4, 1]);
    for len in 0..good.len() {
        assert!(with_pickle(&good[..len]).is_err(), "cut at {len}");
    }
    assert_eq!(with_pickle(b"\x80\x02").unwrap_err(), Fault::Truncated(2));
    assert_eq!(with_pickle(b"\x80\x06}.").unwrap_err(), Fault::Protocol(6));
    assert_eq!(with_pickle(b"\x80\x02].").unwrap_err(), Fault::NotStateDict("a list"));
    let entry = &good[3..good.len() - 1];
    let twice = [&good[..good.len() - 1], entry, b"."].concat();
    assert_eq!(with_pickle(&twice).unwrap_err(), Fault::DuplicateTensor("w".into()));
    let named: &[(&[u8], &str)] = &[
        (b"cos\nsystem\n.", "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"ctorch\nShortStorage\n.", "torch.ShortStorage"),
        (b"ios\nsystem\n.", "instruction INST"),
        (b"\x81.", "instruction NEWOBJ"),
        (b"P1\n.", "instruction PERSID"),
        (b"\xff.", "instruction 0xff"),
        (b"}}.", "left behind the end mark"),
        (b"}..", "left behind the end mark"),
        (b"s.", "a value is missing"),
        (b"(s.", "a value is missing"),
        (b"}(K\x01u.", "a key without a value"),
        (b"u.", "a mark is missing"),
        (b"K\x01(K\x01K\x01u.", "an integer gets entries"),
        (b"}K\x01a.", "a dictionary gets items"),
        (b"h\x05.", "memo 5 is not set"),
        (b"K\x01)R.", "an integer is called"),
        (b"ccollections\nOrderedDict\nK\x01R.", "called with other arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "called with other arguments"),
        (b"}}\x8c\x01aNsb.", "attributes other than _metadata"),
        (b"K\x01Q.", "a reference that is no storage"),
        (b"\x8c\x02\xff\xfe.", "a text is not UTF-8"),
        (b"X\xff\xff\xff\xff.", "ends early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "ends early"),
        (b"\x8a\x09.........", "more than 64 bits"),
    ];
    for (pickle, expected) in named {
        let message = with_pickle(pickle).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn limits_hold_before_memory_is_taken() {
    let deep = [vec![b'('; 65], b".".to_vec()].concat();
    let Fault::Limit { what, .. } = with_pickle(&deep).unwrap_err() else { panic!("deep") };
    assert_eq!(what, "nested marks");
    let wide = vec![b'N'; 70_000];
    let Fault::Limit { what, .. } = with_pickle(&wide).unwrap_err() else { panic!("wide") };
    assert_eq!(what, "pending values");
    let many = b"N0]0".repeat(200_000);
    let many = [b"\x80\x02".as_slice(), &many].concat();
    let Fault::Limit { what, .. } = with_pickle(&many).unwrap_err() else { panic!("many") };
    assert!(what.starts_with("bytes of values"), "{what}");
}

#[test]
fn shards_are_joined_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shard = |name: &str, key: &str| {
        let pickle = one_tensor(key, 8, 0, &[8], &[1]);
        let data = format!("x/data/{key}");
        std::fs::write(at(name), stored_zip(&[("x/data.pkl", &pickle), (&data, &[0; 32])]))
            .unwrap();
    };
    shard("a.bin", "0");
    let index = |map: &str| {
        std::fs::write(at(INDEX_NAME), format!("{{\"metadata\": {{}}, \"weight_map\": {map}}}"))
            .unwrap();
        match TorchSource::open(folder.path()) {
            Ok(source) => source.names().join(","),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(index(r#"{"w": "a.bin"}"#), "w");
    assert!(index(r#"{"w": "a.bin", "v": "a.bin"}"#).contains("a.bin lacks tensor v"));
    assert!(index(r#"{"w": "../a.bin"}"#).contains("no plain file name"));
    assert!(index(r#"{"w": "b.bin"}"#).contains("b.bin"));
    assert!(index("[]").contains("not an index"));
    shard("b.bin", "1");
    assert!(index(r#"{"w": "a.bin", "w2": "b.bin"}"#).contains("b.bin lacks tensor w2"));
    std::fs::remove_file(at(INDEX_NAME)).unwrap();
    let message = TorchSource::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("neither pytorch_model.bin nor"), "{message}");
}

//! Zip archives of stored entries, for tests of readers that must refuse damaged ones.

use danaus_tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// An archive of these entries, uncompressed and in this order. Checksums are left at zero, which
/// readers of mapped files do not look at.
pub fn stored_zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = file.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(0u32.to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A file as `torch.save` writes for a state dict of whole f32 and bf16 tensors.
pub fn torch_file(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let text = |text: &str| {
        let len = (text.len() as u32).to_le_bytes();
        [b"X".as_slice(), &len, text.as_bytes()].concat()
    };
    let number = |value: usize| [b"J".as_slice(), &(value as i32).to_le_bytes()].concat();
    let tuple = |values: &[usize]| {
        let items: Vec<u8> = values.iter().flat_map(|&value| number(value)).collect();
        [b"(".as_slice(), &items, b"t"].concat()
    };
    let (mut pickle, mut data) = (b"\x80\x02ccollections\nOrderedDict\n)R".to_vec(), Vec::new());
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        let tensor = tensor.contiguous().expect("memory for a test tensor");
        let storage = match tensor.dtype() {
            DType::F32 => "FloatStorage",
            DType::BF16 => "BFloat16Storage",
            other => panic!("{name} is {other}"),
        };
        let strides: Vec<usize> =
            (1..=tensor.rank()).map(|from| tensor.dims()[from..].iter().product()).collect();
        pickle.extend(text(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(text("storage"));
        pickle.extend(format!("ctorch\n{storage}\n").as_bytes());
        pickle.extend([text(&key.to_string()), text("cpu"), number(tensor.elem_count())].concat());
        pickle.extend([b"tQ".to_vec(), number(0), tuple(tensor.dims()), tuple(&strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtRs");
        let bytes = tensor.as_bytes().expect("a contiguous tensor").to_vec();
        data.push((format!("model/data/{key}"), bytes));
    }
    pickle.push(b'.');
    let mut entries: Vec<(&str, &[u8])> = vec![("model/data.pkl", &pickle)];
    entries.extend(data.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    stored_zip(&entries)
}

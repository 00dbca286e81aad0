//! The formats: a valid file of each, how it is damaged, and what reading it means.

use crate::mutate::{self, Random};
use danaus_model::Config;
use danaus_model::formats::gguf::{self, GgufSource};
use danaus_model::formats::torch::TorchSource;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::Checkpoint;
use danaus_testkit::archive::stored_zip;
use danaus_text::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bytes of a safetensors file.
    Safetensors,
    /// The JSON header of a safetensors file, with its length set right.
    SafetensorsHeader,
    /// Bytes of a GGUF file.
    Gguf,
    /// Bytes of a zip archive.
    Zip,
    /// Instructions of a pickle in an intact archive.
    Pickle,
    /// A model's config.
    Config,
    /// A tokenizer.
    Tokenizer,
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).expect("a committed file")
}

/// Reads every tensor of a source as far as its bytes.
fn read_all(source: &dyn TensorSource) -> bool {
    source.names().iter().all(|name| match source.tensor(name) {
        Ok(Some(tensor)) => tensor.contiguous().is_ok(),
        _ => false,
    })
}

/// Bytes as a file.
fn with_file<T>(file: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let place = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(place.path(), file).expect("a written file");
    read(place.path())
}

impl Format {
    pub const ALL: [Format; 7] = [
        Format::Safetensors,
        Format::SafetensorsHeader,
        Format::Gguf,
        Format::Zip,
        Format::Pickle,
        Format::Config,
        Format::Tokenizer,
    ];

    /// Whether a file is parsed as JSON or a template as a whole.
    pub fn is_text(self) -> bool {
        !matches!(self, Self::Safetensors | Self::Gguf | Self::Zip | Self::Pickle)
    }

    /// A valid file.
    pub fn original(self) -> Vec<u8> {
        match self {
            Self::Safetensors | Self::SafetensorsHeader => bytes("formats/state.safetensors"),
            Self::Gguf => bytes("40-engine/llama-q8_0.gguf"),
            Self::Zip | Self::Pickle => bytes("formats/state.bin"),
            Self::Config => danaus_model::presets::quickstart(2048).to_json().into_bytes(),
            Self::Tokenizer => bytes("40-engine/llama-gqa/tokenizer.json"),
        }
    }

    /// A damaged file.
    pub fn damaged(self, random: &mut Random) -> Vec<u8> {
        let mut file = self.original();
        match self {
            Self::Safetensors => mutate::bytes(&mut file, 1200, random),
            // Up to where the tensors' data begins; smaller parts of it are more often hit.
            Self::Gguf => {
                let focus = random.pick(&[64, 700, 700, 9984]);
                mutate::bytes(&mut file, focus, random);
            }
            Self::Zip => {
                // Mostly the directory at the end, which mutation from the front does not find.
                if random.below(4) > 0 {
                    file.reverse();
                    mutate::bytes(&mut file, 1500, random);
                    file.reverse();
                } else {
                    mutate::bytes(&mut file, usize::MAX, random);
                }
            }
            Self::SafetensorsHeader => {
                let len = u64::from_le_bytes(*file.first_chunk().expect("a header")) as usize;
                let mut header: Value =
                    serde_json::from_slice(&file[8..8 + len]).expect("a valid header");
                mutate::json(&mut header, random);
                let header = header.to_string().into_bytes();
                let data = file.split_off(8 + len);
                return [(header.len() as u64).to_le_bytes().to_vec(), header, data].concat();
            }
            Self::Pickle => {
                let name = random.pick(&["formats/state.bin", "formats/module.bin"]);
                return pickle(&bytes(name), random);
            }
            Self::Config | Self::Tokenizer => {
                if random.below(4) == 0 {
                    mutate::bytes(&mut file, usize::MAX, random);
                } else {
                    let mut value: Value = serde_json::from_slice(&file).expect("valid JSON");
                    mutate::json(&mut value, random);
                    file = value.to_string().into_bytes();
                }
            }
        }
        file
    }

    /// Reads a file and all that is in it; whether it was accepted.
    pub fn read(self, file: &[u8]) -> bool {
        match self {
            Self::Safetensors | Self::SafetensorsHeader => {
                with_file(file, |path| Checkpoint::open(path).is_ok_and(|file| read_all(&file)))
            }
            Self::Gguf => with_file(file, |path| match GgufSource::open(path) {
                Ok(source) => {
                    let shown: usize =
                        source.file().metadata().map(|(_, value)| format!("{value:?}").len()).max().unwrap_or(0);
                    let _ = gguf::tokenizer::read(source.file());
                    shown > 0 && read_all(&source)
                }
                Err(_) => false,
            }),
            Self::Zip | Self::Pickle => {
                with_file(file, |path| TorchSource::open(path).is_ok_and(|file| read_all(&file)))
            }
            Self::Config => std::str::from_utf8(file)
                .is_ok_and(|text| Config::parse(text, Path::new("config.json")).is_ok()),
            Self::Tokenizer => match std::str::from_utf8(file).map(Tokenizer::from_json) {
                Ok(Ok(tokenizer)) => {
                    let text = "The matrix returns  16 blocks,\r\n é<|im_end|>";
                    let ids = tokenizer.encode(text, true);
                    ids.and_then(|ids| tokenizer.decode(&ids, true)).is_ok()
                }
                _ => false,
            },
        }
    }
}

/// An archive whose pickle is damaged: instructions changed, taken from elsewhere, or put in.
fn pickle(file: &[u8], random: &mut Random) -> Vec<u8> {
    let archive = rawzip::ZipArchive::from_slice(file).expect("a valid archive");
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    for entry in archive.entries() {
        let entry = entry.expect("a valid entry");
        let name = String::from_utf8(entry.file_path().as_ref().to_vec()).expect("a valid name");
        let data = archive.get_entry(entry.wayfinder()).expect("its data").data().to_vec();
        entries.push((name, data));
    }
    let known: &[u8] = b"\x80\x95(01qrhjcRbQNJKMGX}])tsuae.\x85\x86\x87\x88\x89\x8a\x8c\x8d\x93\x94ioPIl2gp";
    for (name, data) in &mut entries {
        if name.ends_with("data.pkl") {
            if random.below(3) == 0 {
                mutate::bytes(data, usize::MAX, random);
            }
            for _ in 0..random.below(6) {
                let at = random.below(data.len());
                match random.below(4) {
                    0 => data.insert(at, random.pick(known)),
                    1 if !data.is_empty() => data[at] = random.pick(known),
                    2 => {
                        let many = vec![random.pick(known); random.below(20_000)];
                        data.splice(at..at, many);
                    }
                    _ => mutate::bytes(data, usize::MAX, random),
                }
            }
        } else if random.below(12) == 0 {
            mutate::bytes(data, usize::MAX, random);
        }
    }
    let borrowed: Vec<(&str, &[u8])> =
        entries.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    stored_zip(&borrowed)
}

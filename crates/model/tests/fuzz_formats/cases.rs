//! The formats: a valid file of each, how it is damaged, and what reading it means.

use crate::mutate::{self, Random};
use danaus_model::formats::gguf::{self, GgufSource};
use danaus_model::formats::torch::TorchSource;
use danaus_model::{Config, families};
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::Checkpoint;
use danaus_testkit::archive::stored_zip;
use danaus_text::chat::{ChatTemplate, Conversation, Message, Role};
use danaus_text::tokenizer::{Settings, Tokenizer};
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
    /// The config of another project's model.
    ForeignConfig,
    /// A tokenizer.
    Tokenizer,
    /// A chat template.
    Template,
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
    pub const ALL: [Format; 9] = [
        Format::Safetensors,
        Format::SafetensorsHeader,
        Format::Gguf,
        Format::Zip,
        Format::Pickle,
        Format::Config,
        Format::ForeignConfig,
        Format::Tokenizer,
        Format::Template,
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
            Self::ForeignConfig => bytes("40-engine/llama3-rope-tied-bf16/config.json"),
            Self::Tokenizer => bytes("40-engine/llama-gqa/tokenizer.json"),
            Self::Template => TEMPLATE.as_bytes().to_vec(),
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
            Self::Template => return template(random).into_bytes(),
            Self::Config | Self::ForeignConfig | Self::Tokenizer => {
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
                    let shown: usize = source
                        .file()
                        .metadata()
                        .map(|(_, value)| format!("{value:?}").len())
                        .max()
                        .unwrap_or(0);
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
            Self::ForeignConfig => std::str::from_utf8(file).is_ok_and(|text| {
                families::parse_object(text).is_ok_and(|fields| {
                    let found = families::recognise(&fields);
                    found.is_ok_and(|(family, kind)| family.read(&kind, &fields).is_ok())
                })
            }),
            Self::Template => std::str::from_utf8(file).is_ok_and(|text| {
                let conversation = Conversation {
                    messages: vec![
                        Message::new(Role::User, "Hello {{ x }} <|im_end|>"),
                        Message::new(Role::Assistant, "é\n"),
                    ],
                    add_generation_prompt: true,
                    tools: None,
                };
                let template = ChatTemplate::new(text, &Settings::default());
                template.is_ok_and(|template| template.render(&conversation).is_ok())
            }),
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

/// A template of the usual kind.
const TEMPLATE: &str = "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] | trim }}\
{%- endif -%}{%- for message in messages -%}{%- if (message['role'] == 'user') != \
(loop.index0 % 2 == 0) -%}{{ raise_exception('roles') }}{%- endif -%}{{ '<|im_start|>' + \
message['role'] + '\\n' + message['content'] | trim }}{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";

/// The template with parts taken out, moved, and put in. No piece doubles a string or repeats one a
/// million times: the template engine does not bound strings that are built and not printed.
fn template(random: &mut Random) -> String {
    const PIECES: [&str; 32] = [
        "{%- for i in range(1000000) -%}",
        "{%- for i in range(99) -%}",
        "{% for a in messages %}",
        "{% endfor %}",
        "{%- endfor -%}",
        "{% if x is defined %}",
        "{% endif %}",
        "{% else %}",
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        "{% set ns = namespace(x='a') %}",
        "{% set ns.x = ns.x + 'b' %}",
        "{{ ns.x }}",
        "{{ 'a' * 1000 }}",
        "{{ ('a' * 100) | replace('a', 'b' * 100) }}",
        "{{ messages | tojson(indent=9999999) }}",
        "{{ 2 ** 9999 }}",
        "{{ 1 // 0 }}",
        "{{ [1, 2][99999999999] }}",
        "{{ 'é'[1:] }}",
        "{{ messages[-1]['content'][::-1] }}",
        "{{ 'x' | center(100000000) }}",
        "{{ range(100000000) | list }}",
        "{% include 'x' %}",
        "{{ strftime_now('%Y %') }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{{ messages | map(attribute='role') | join(', ') }}",
        "{{ 'a,b'.split(',')[0].strip() }}",
        "{#",
        "#}",
        "{{ ((((((((((((((((1)))))))))))))))) }}",
        "{% raw %}",
    ];
    let mut text = TEMPLATE.to_string();
    for _ in 0..1 + random.below(5) {
        let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let borders: Vec<usize> =
            cuts.iter().copied().filter(|&at| text[at..].starts_with('{')).collect();
        let at = match random.below(3) {
            0 if !cuts.is_empty() => random.pick(&cuts),
            _ if !borders.is_empty() => random.pick(&borders),
            _ => 0,
        };
        match random.below(4) {
            0 => {
                let end = cuts.iter().copied().find(|&cut| cut > at + random.below(30));
                text.replace_range(at..end.unwrap_or(text.len()), "");
            }
            1 => text.insert_str(at, &random.pick(&PIECES).repeat(1 + random.below(6))),
            _ => text.insert_str(at, random.pick(&PIECES)),
        }
    }
    text
}

/// A valid GGUF file of this many tensors of eight floats.
pub fn many_tensors(count: u64) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(count.to_le_bytes());
    // One key: k = 7.
    file.extend(1u64.to_le_bytes());
    file.extend([1u64.to_le_bytes().as_slice(), b"k", &0u32.to_le_bytes(), &[7]].concat());
    for tensor in 0..count {
        let name = format!("{tensor:x}");
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(8u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend((32 * tensor).to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + 32 * count as usize, 0);
    file
}

/// An archive whose pickle repeats some instructions.
pub fn repeated_pickle(pattern: &[u8], len: usize) -> Vec<u8> {
    let pickle = [b"\x80\x02".as_slice(), &pattern.repeat(len / pattern.len()), b"}."].concat();
    stored_zip(&[("x/data.pkl", &pickle)])
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
    let known: &[u8] =
        b"\x80\x95(01qrhjcRbQNJKMGX}])tsuae.\x85\x86\x87\x88\x89\x8a\x8c\x8d\x93\x94ioPIl2gp";
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

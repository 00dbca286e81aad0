//! Recognising what lies at a path, and loading it.

use super::export::part_sizes;
use super::{CONFIG_NAME, Model, SpecialTokens, TOKENIZER_NAME, finite};
use crate::config::{Config, MODEL_TYPE};
use crate::decoder::{Compute, Decoder};
use crate::families::{self, Family, Renamed, parse_object, parts_of};
use crate::formats::dequantized::{Dequantized, block_name};
use crate::formats::torch::{self, TorchSource};
use crate::{Error, Result};
use danaus_kernel::ops::quantized::Activations;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::{Checkpoint, INDEX_NAME, SINGLE_NAME};
use danaus_tensor::{DType, Device, ParamBuilder, Shape};
use danaus_text::tokenizer::Tokenizer;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names that a complaint lists at most.
const LISTED: usize = 8;

/// A recognised model: its config is checked, its tensors are found, none is read.
pub struct Opened {
    path: PathBuf,
    family: Option<&'static Family>,
    kind: String,
    config: Config,
    /// Their tensors, under their names.
    stored: Arc<dyn TensorSource>,
    /// The same under ours; nothing where the names are ours.
    renamed: Option<Arc<Renamed>>,
    pub(super) special: SpecialTokens,
    /// Where the weights' file holds the tokenizer: it, or why it is not read.
    pub(super) own_tokenizer: Option<Result<Tokenizer, String>>,
    /// Whether some weights are stored as blocks, be they read as f32.
    pub(super) quantized: bool,
}

/// What [`describe`] tells.
#[derive(Clone, Debug)]
pub struct Description {
    /// Whose spelling it is: `danaus`, `llama`, `state-spaces`, ....
    pub family: String,
    /// The architecture's name in the file.
    pub kind: String,
    /// The model in our terms.
    pub config: Config,
    /// Number of parameter elements.
    pub parameters: usize,
    /// Number of layers.
    pub layers: usize,
    /// Tokens with a role.
    pub special: SpecialTokens,
}

/// What lies at a path, without reading weights.
///
/// # Errors
/// As [`Opened::open`].
pub fn describe(path: &Path) -> Result<Description> {
    Opened::open(path)?.describe()
}

impl Opened {
    /// Recognises a folder with `config.json` (ours, Hugging Face's, state-spaces') or a GGUF file.
    ///
    /// # Errors
    /// When there is neither, the architecture is unknown (all known ones are listed), a setting is not
    /// implemented or contradicts another (it is named), or the weights' files are missing or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, false)
    }

    /// As [`Self::open`], with quantised weights read as f32: for conversions and inspection.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_dequantized(path: &Path) -> Result<Self> {
        Self::open_as(path, true)
    }

    fn open_as(path: &Path, dequantize: bool) -> Result<Self> {
        let fail = |detail: &str| Error::Checkpoint { path: path.into(), detail: detail.into() };
        if path.is_file() {
            return super::gguf::open(path, dequantize);
        }
        if !path.is_dir() {
            return Err(fail("no such folder"));
        }
        let file = path.join(CONFIG_NAME);
        if !file.is_file() {
            return Err(fail("no config.json in this folder, so it is no model"));
        }
        let text = std::fs::read_to_string(&file)
            .map_err(|error| danaus_tensor::Error::io(&file, error))?;
        let wrong = |detail: String| Error::Config { path: file.clone(), detail };
        let fields = parse_object(&text).map_err(|detail| wrong(format!("no JSON: {detail}")))?;
        let special = SpecialTokens::load(path, &fields)?;
        let stored = || -> Result<Arc<dyn TensorSource>> {
            let stored = tensors_of(path)?;
            Ok(if dequantize { Arc::new(Dequantized::new(stored)) } else { stored })
        };
        if fields.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE) {
            let config = Config::parse(&text, &file)?;
            let (kind, path) = (MODEL_TYPE.to_string(), path.to_path_buf());
            let (family, renamed, stored) = (None, None, stored()?);
            let quantized =
                tensors_of(&path)?.names().iter().any(|name| block_name(name).is_some());
            let own_tokenizer = None;
            return Ok(Self {
                path,
                family,
                kind,
                config,
                stored,
                renamed,
                special,
                own_tokenizer,
                quantized,
            });
        }
        let (family, kind) =
            families::recognise(&fields).map_err(|error| wrong(error.to_string()))?;
        let mut opened = Self::translated(path, (family, kind), &fields, stored()?)
            .map_err(|error| wrong(error.to_string()))?;
        opened.special = special;
        Ok(opened)
    }

    /// A model of another project from its settings and its tensors; `path` appears in messages.
    ///
    /// # Errors
    /// When a setting is not implemented or contradicts another; it is named.
    pub fn translated(
        path: &Path,
        (family, kind): (&'static Family, String),
        fields: &Map<String, Value>,
        stored: Arc<dyn TensorSource>,
    ) -> Result<Self> {
        let config = family.read(&kind, fields)?;
        let renamed = Renamed::new(stored.clone(), family.names(&config));
        Ok(Self {
            path: path.to_path_buf(),
            family: Some(family),
            kind,
            config,
            stored,
            renamed: Some(Arc::new(renamed)),
            special: SpecialTokens::default(),
            own_tokenizer: None,
            quantized: false,
        })
    }

    /// Tokens with a role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether some weights are stored as blocks.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// The float type that most weights are stored in; f32 where some are quantised.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn float_type(&self) -> Result<DType> {
        if self.quantized {
            return Ok(DType::F32);
        }
        let mut bytes = BTreeMap::new();
        for name in self.stored.names() {
            if let Some(tensor) =
                self.stored.tensor(&name)?.filter(|tensor| tensor.dtype().is_float())
            {
                *bytes.entry(tensor.dtype()).or_insert(0) += tensor.bytes();
            }
        }
        let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
        Ok(most.map_or(DType::F32, |(dtype, _)| dtype))
    }

    /// The config in our terms.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors under our names.
    pub fn tensors(&self) -> Arc<dyn TensorSource> {
        match &self.renamed {
            Some(renamed) => renamed.clone(),
            None => self.stored.clone(),
        }
    }

    /// The same with another config and tensors under our names.
    pub(super) fn replaced(self, config: Config, tensors: Arc<dyn TensorSource>) -> Self {
        Self { config, stored: tensors, renamed: None, ..self }
    }

    /// What it is, without reading weights.
    ///
    /// # Errors
    /// When its size cannot be told.
    pub fn describe(&self) -> Result<Description> {
        Ok(Description {
            family: self.family.map_or(MODEL_TYPE, |family| family.name).to_string(),
            kind: self.kind.clone(),
            parameters: self.config.elem_count()?,
            layers: self.config.layers.chars().count(),
            config: self.config.clone(),
            special: self.special.clone(),
        })
    }

    fn fail(&self, detail: String) -> Error {
        Error::Checkpoint { path: self.path.clone(), detail }
    }

    /// Builds the network and reads the tokenizer.
    ///
    /// # Errors
    /// When tensors are missing, unexpected, of another shape or not finite, or the tokenizer is
    /// malformed or larger than the vocabulary; all are named.
    pub fn load(self, compute: Compute) -> Result<Model> {
        self.check_finite()?;
        let dtype = if compute.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut params = ParamBuilder::load(self.tensors(), dtype, compute.device);
        if compute.device.is_cuda() {
            // The matrix units take both factors in one type: cast once, not in every product.
            params = params.matrices_as(compute.dtype);
        } else if dtype == DType::F32 {
            // No second copy: bf16 and f16 matrices are widened in registers, f32 ones are the file.
            params = params.as_stored();
        }
        let decoder = Decoder::build(&params, &self.config, compute)
            .map_err(|error| self.explain(compute).unwrap_or(error))?;
        let mut unused = params.unused();
        if self.config.tied_head && unused.iter().any(|name| name == "head.weight") {
            self.check_tied()?;
            unused.retain(|name| name != "head.weight");
        }
        if !unused.is_empty() {
            let unused = unused.iter().map(|name| self.label(name)).collect();
            return Err(self.fail(format!("unexpected tensors: {}", listed(unused))));
        }
        // A file's own tokenizer may be of a kind we do not read; token ids still go in and out.
        let (tokenizer, unreadable) = match &self.own_tokenizer {
            Some(Err(detail)) => (None, Some(detail.clone())),
            _ => (self.tokenizer()?, None),
        };
        Ok(Model { decoder, tokenizer, unreadable, special: self.special })
    }

    /// Their name of a tensor of ours.
    fn label(&self, name: &str) -> String {
        self.renamed.as_ref().map_or(name.to_string(), |renamed| renamed.label(name))
    }

    fn check_finite(&self) -> Result<()> {
        for name in self.stored.names() {
            if let Some(tensor) = self.stored.tensor(&name)?
                && !finite::is_finite(&tensor)?
            {
                return Err(self.fail(format!("tensor {name} holds NaN or infinite values")));
            }
        }
        Ok(())
    }

    /// A tied head that is stored all the same must be the embedding.
    fn check_tied(&self) -> Result<()> {
        let source = self.tensors();
        let pair = (source.tensor("embedding.weight")?, source.tensor("head.weight")?);
        let same = match &pair {
            (Some(a), Some(b)) => {
                let alike = a.shape() == b.shape() && a.dtype() == b.dtype();
                alike && a.contiguous()?.as_bytes()? == b.contiguous()?.as_bytes()?
            }
            _ => false,
        };
        let head = self.label("head.weight");
        let detail = format!("{head} differs from the embedding, but the config ties them");
        if same { Ok(()) } else { Err(self.fail(detail)) }
    }

    /// Everything that is wrong with the tensors, once building has failed.
    fn explain(&self, compute: Compute) -> Option<Error> {
        let complaints = self.complaints(compute).ok()?;
        (!complaints.is_empty()).then(|| self.fail(complaints.join("; ")))
    }

    /// Everything that is wrong with tensors and vocabulary, by headers alone.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn problems(&self) -> Result<Vec<String>> {
        let mut problems = self.complaints(Compute::default())?;
        let outline = ParamBuilder::outline(DType::F32, Device::Cpu);
        let expected = Decoder::build(&outline, &self.config, Compute::default())?;
        let mut known: BTreeSet<String> = BTreeSet::new();
        for param in expected.params().iter() {
            let pieces = self.pieces(param.name(), param.tensor().dims());
            known.extend(pieces.into_iter().map(|(name, _)| name));
            known.insert(param.name().to_string());
        }
        if self.config.tied_head {
            known.insert("head.weight".into());
        }
        let source = Dequantized::new(self.tensors());
        let unexpected = source.names().into_iter().filter(|name| !known.contains(name));
        let unexpected: Vec<String> = unexpected.map(|name| self.label(&name)).collect();
        if !unexpected.is_empty() {
            problems.push(format!("unexpected tensors: {}", listed(unexpected)));
        }
        Ok(problems)
    }

    fn complaints(&self, compute: Compute) -> Result<Vec<String>> {
        let outline = ParamBuilder::outline(DType::F32, Device::Cpu);
        // Parameters that do not exist yet are not quantised.
        let compute = Compute { activations: Activations::F32, ..compute };
        let expected = Decoder::build(&outline, &self.config, compute)?;
        let source = Dequantized::new(self.tensors());
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        for param in expected.params().iter() {
            for (name, dims) in self.pieces(param.name(), param.tensor().dims()) {
                let label = self.label(&name);
                match source.tensor(&name)? {
                    None => missing.push(label),
                    Some(tensor) if tensor.dims() != dims => {
                        let (found, expected) = (tensor.shape(), Shape::from(dims));
                        misshapen.push(format!("{label} has shape {found}, expected {expected}"));
                    }
                    Some(_) => {}
                }
            }
        }
        let mut complaints = Vec::new();
        if !missing.is_empty() {
            complaints.push(format!("missing tensors: {}", listed(missing)));
        }
        if !misshapen.is_empty() {
            complaints.push(listed(misshapen));
        }
        Ok(complaints)
    }

    /// A tensor of ours, or its parts where their table has it so, with shapes.
    fn pieces(&self, name: &str, dims: &[usize]) -> Vec<(String, Vec<usize>)> {
        let apart = |parts: &Vec<String>| match &self.renamed {
            Some(renamed) => !renamed.is_whole(name),
            None => parts.iter().any(|part| self.stored.contains(part).unwrap_or(false)),
        };
        match parts_of(name).filter(apart) {
            None => vec![(name.to_string(), dims.to_vec())],
            Some(parts) => {
                let sizes = part_sizes(&self.config, name, dims[0]);
                let shape = |rows: usize| [&[rows][..], &dims[1..]].concat();
                parts.into_iter().zip(sizes.into_iter().map(shape)).collect()
            }
        }
    }

    /// The tokenizer, if there is one.
    ///
    /// # Errors
    /// When it is malformed or larger than the vocabulary.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let path = self.path.join(TOKENIZER_NAME);
        let tokenizer = match &self.own_tokenizer {
            Some(Ok(tokenizer)) => tokenizer.clone(),
            Some(Err(detail)) => return Err(self.fail(detail.clone())),
            None if path.is_file() => Tokenizer::load(&path)?,
            None => return Ok(None),
        };
        let (ours, theirs) = (self.config.vocab_size, tokenizer.vocab_size());
        if theirs > ours {
            return Err(self.fail(format!("the tokenizer has {theirs} tokens, the model {ours}")));
        }
        Ok(Some(tokenizer))
    }
}

/// The tensors of a folder: safetensors if there are any, else PyTorch's.
fn tensors_of(path: &Path) -> Result<Arc<dyn TensorSource>> {
    let has = |name: &str| path.join(name).is_file();
    let safetensors = has(SINGLE_NAME) || has(INDEX_NAME);
    if !safetensors && (has(torch::SINGLE_NAME) || has(torch::INDEX_NAME)) {
        return Ok(Arc::new(TorchSource::open(path)?));
    }
    Ok(Arc::new(Checkpoint::open(path)?))
}

/// The first few, and how many more there are.
fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", names.join(", "))
}

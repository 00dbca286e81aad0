//! Named parameters, and the builder that initialises or loads them.
//!
//! A model is built by walking names: `builder.pp("layers").pp(0).param("weight", ...)`. The same walk
//! initialises a new model and loads a checkpoint, so that parameter names are the checkpoint's. All
//! parameters made by one builder are collected in a [`ParamSet`].

use crate::rng::Rng;
use crate::{DType, Device, Error, Gradients, Result, Shape, Tensor, TensorId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

/// How a new parameter starts.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// All elements this value.
    Constant(f64),
    /// Uniform between two bounds.
    Uniform(f64, f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// A function of a number uniform in [0, 1), e.g. for log-uniform time steps.
    Map(fn(f64) -> f64),
    /// A function of the index along the last dimension, e.g. for the rates of a diagonal system.
    Index(fn(usize) -> f64),
}

/// A trainable tensor with a name. Cloning shares it: tied weights are one parameter.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    name: String,
    decay: bool,
    value: Mutex<Tensor>,
}

impl Param {
    fn new(name: String, decay: bool, value: Tensor) -> Self {
        // Quantised blocks are bytes: constants, which no tape should keep.
        let value = if value.dtype().is_differentiable() { value.tracked() } else { value };
        Self(Arc::new(Inner { name, decay, value: Mutex::new(value) }))
    }

    /// A parameter outside of any builder, for shards and conversions.
    ///
    /// # Errors
    /// When there is no memory for its own copy.
    pub fn from_tensor(name: &str, decay: bool, value: &Tensor) -> Result<Self> {
        Ok(Self::new(name.to_string(), decay, value.detach().copy()?))
    }

    fn lock(&self) -> MutexGuard<'_, Tensor> {
        // The tensor is replaced as a whole, so a panic elsewhere leaves a valid one.
        self.0.value.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Full name, as in the checkpoint.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether weight decay applies (matrices yes; biases, norms, `A_log`, `D`, `dt_bias` no).
    pub fn decays(&self) -> bool {
        self.0.decay
    }

    /// The current value, a leaf of the tape.
    pub fn tensor(&self) -> Tensor {
        self.lock().clone()
    }

    /// The current value in another dtype; gradients flow back to the parameter's own.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn tensor_as(&self, dtype: DType) -> Result<Tensor> {
        self.tensor().to_dtype(dtype)
    }

    /// Identity under which the current value's gradient is reported.
    pub fn id(&self) -> TensorId {
        self.lock().id()
    }

    /// Takes this parameter's gradient.
    pub fn take_grad(&self, gradients: &mut Gradients) -> Option<Tensor> {
        gradients.take_id(self.id())
    }

    /// Replaces the value; shape and dtype must stay.
    ///
    /// # Errors
    /// When they differ.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        let mut current = self.lock();
        if value.shape() != current.shape() {
            let arg = self.name().to_string();
            return Err(Error::shape("set", arg, value.shape(), current.shape().to_string()));
        }
        if value.dtype() != current.dtype() {
            let arg = self.name().to_string();
            return Err(Error::dtype("set", arg, value.dtype(), current.dtype().name()));
        }
        *current = value.contiguous()?.tracked();
        Ok(())
    }

    /// Changes the value in place (a copy is made only while someone else still holds it).
    ///
    /// # Errors
    /// Whatever `change` reports.
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        let mut current = self.lock();
        if current.is_unique() {
            return change(&mut current);
        }
        let mut copy = current.detach().copy()?;
        change(&mut copy)?;
        *current = copy.tracked();
        Ok(())
    }
}

/// Changes the values of several parameters in one go, for optimisers that visit all of them in one
/// parallel pass. A value that someone else still holds is copied first.
///
/// No parameter may occur twice: the second would wait for the first one's lock forever.
///
/// # Errors
/// A parameter that occurs twice; whatever `change` reports.
pub fn update_all(
    params: &[&Param],
    change: impl FnOnce(&mut [&mut Tensor]) -> Result<()>,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = params.iter().find(|param| !seen.insert(Arc::as_ptr(&param.0))) {
        return Err(Error::internal(format!("parameter {} is updated twice", twice.name())));
    }
    let mut values: Vec<MutexGuard<'_, Tensor>> = params.iter().map(|param| param.lock()).collect();
    for value in &mut values {
        if !value.is_unique() {
            **value = value.detach().copy()?.tracked();
        }
    }
    let mut values: Vec<&mut Tensor> = values.iter_mut().map(|value| &mut **value).collect();
    change(&mut values)
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.lock();
        write!(f, "Param({} {} {})", self.name(), value.dtype(), value.shape())
    }
}

/// All parameters of a model, in the order they were made.
#[derive(Clone, Debug, Default)]
pub struct ParamSet(Vec<Param>);

impl ParamSet {
    /// Iterates in construction order.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.0.iter()
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.0.iter().find(|param| param.name() == name)
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of elements of all parameters.
    pub fn elem_count(&self) -> usize {
        self.0.iter().map(|param| param.tensor().elem_count()).sum()
    }
}

impl FromIterator<Param> for ParamSet {
    fn from_iter<I: IntoIterator<Item = Param>>(params: I) -> Self {
        Self(params.into_iter().collect())
    }
}

/// Where loaded parameters come from, such as a folder of safetensors files.
pub trait TensorSource: Send + Sync {
    /// The tensor of that name, if there is one.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    fn tensor(&self, name: &str) -> Result<Option<Tensor>>;

    /// Whether there is a tensor of that name.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`], which the default asks; sources with an index override it.
    fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.tensor(name)?.is_some())
    }

    /// All names.
    fn names(&self) -> Vec<String>;
}

#[derive(Clone)]
enum Source {
    Init { seed: u64 },
    Outline,
    Load(Arc<dyn TensorSource>),
    Borrow(Arc<dyn TensorSource>),
}

impl Source {
    fn tensors(&self) -> Option<&Arc<dyn TensorSource>> {
        match self {
            Source::Init { .. } | Source::Outline => None,
            Source::Load(source) | Source::Borrow(source) => Some(source),
        }
    }
}

/// A weight matrix that was made of parameters, whatever these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeMatrix {
    /// Name: the prefix of its parameters, without the last dot.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// How it is stored.
    pub format: String,
}

/// Whether a pattern names `name`: part by part between dots, with `*` for any one part.
pub fn name_matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some(asked), Some(part)) if asked == "*" || asked == part => {}
            _ => return false,
        }
    }
}

/// Makes parameters under a prefix. Cloning (and [`ParamBuilder::pp`]) shares the collection.
#[derive(Clone)]
pub struct ParamBuilder {
    source: Source,
    dtype: DType,
    device: Device,
    prefix: String,
    as_stored: bool,
    round_inputs: bool,
    matrices: Option<DType>,
    formats: Arc<[(String, String)]>,
    made: Arc<Mutex<Vec<Param>>>,
    made_matrices: Arc<Mutex<Vec<MadeMatrix>>>,
}

impl ParamBuilder {
    /// New parameters, random ones from `seed` and the parameter's name.
    pub fn init(seed: u64, dtype: DType, device: Device) -> Self {
        Self::with_source(Source::Init { seed }, dtype, device)
    }

    /// Parameters of zeros that take no memory: names and shapes of a model that is not built.
    pub fn outline(dtype: DType, device: Device) -> Self {
        Self::with_source(Source::Outline, dtype, device)
    }

    /// Parameters read from a source and converted to `dtype`.
    pub fn load(source: Arc<dyn TensorSource>, dtype: DType, device: Device) -> Self {
        Self::with_source(Source::Load(source), dtype, device)
    }

    /// Parameters that are the source's tensors themselves, with their history: gradients reach whatever
    /// they were computed from. For calling a layer as an operator.
    pub fn borrow(source: Arc<dyn TensorSource>, dtype: DType, device: Device) -> Self {
        Self::with_source(Source::Borrow(source), dtype, device)
    }

    fn with_source(source: Source, dtype: DType, device: Device) -> Self {
        Self {
            source,
            dtype,
            device,
            prefix: String::new(),
            as_stored: false,
            round_inputs: false,
            matrices: None,
            formats: Arc::new([]),
            made: Arc::default(),
            made_matrices: Arc::default(),
        }
    }

    /// Lets weight matrices stay in the element type, and in the memory (such as a mapped file), that
    /// the source has them in. For inference: training wants masters in one dtype.
    pub fn as_stored(self) -> Self {
        Self { as_stored: true, ..self }
    }

    /// Asks matrices of quantised blocks to round what they multiply to eight bits, where they can.
    pub fn with_round_inputs(self, round_inputs: bool) -> Self {
        Self { round_inputs, ..self }
    }

    /// Whether quantised matrices are to round what they multiply.
    pub fn round_inputs(&self) -> bool {
        self.round_inputs
    }

    /// Puts loaded weight matrices of floats into another element type than the rest. For inference.
    pub fn matrices_as(self, dtype: DType) -> Self {
        Self { matrices: Some(dtype), ..self }
    }

    /// Says how matrices of some names are stored: pairs of a name, or of a pattern
    /// ([`name_matches`]), and a format in words. A name counts before patterns, of these the first.
    pub fn with_formats(self, formats: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { formats: formats.into_iter().collect(), ..self }
    }

    /// How the matrix of this builder's prefix is stored, where it was said.
    pub fn format_here(&self) -> Option<&str> {
        let name = self.prefix.trim_end_matches('.');
        let exact = self.formats.iter().find(|(pattern, _)| pattern == name);
        let found =
            exact.or_else(|| self.formats.iter().find(|(pattern, _)| name_matches(pattern, name)));
        found.map(|(_, format)| format.as_str())
    }

    /// Takes down that the parameters of this prefix are a matrix.
    pub fn note_matrix(&self, shape: [usize; 2], format: impl Into<String>) {
        let name = self.prefix.trim_end_matches('.').to_string();
        let mut made = self.made_matrices.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        made.push(MadeMatrix { name, shape, format: format.into() });
    }

    /// The matrices noted so far by this builder and those derived from it.
    pub fn matrices(&self) -> Vec<MadeMatrix> {
        self.made_matrices.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Element type of the parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where parameters are put.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The builder one level down: `pp("layers").pp(3)` makes names `layers.3.*`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        Self { prefix, ..self.clone() }
    }

    /// A parameter that weight decay applies to.
    ///
    /// # Errors
    /// When loading: a missing tensor or another shape.
    pub fn param(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        self.make(name, shape.into(), init, true, false)
    }

    /// A parameter that weight decay applies to, in the element type that the source has it in: bytes
    /// always, floats if the builder is [`Self::as_stored`]. As [`Self::param`] otherwise.
    ///
    /// # Errors
    /// When loading: a missing tensor or another shape.
    pub fn param_as_stored(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        self.make(name, shape.into(), init, true, true)
    }

    /// A parameter that weight decay leaves alone.
    ///
    /// # Errors
    /// When loading: a missing tensor or another shape.
    pub fn param_no_decay(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        self.make(name, shape.into(), init, false, false)
    }

    /// Whether parameters are made and not loaded.
    pub fn is_new(&self) -> bool {
        self.source.tensors().is_none()
    }

    /// Whether a source to load from has a tensor of that name (always true for new models).
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn contains(&self, name: &str) -> Result<bool> {
        match self.source.tensors() {
            None => Ok(true),
            Some(source) => source.contains(&self.full_name(name)),
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn make(
        &self,
        name: &str,
        shape: Shape,
        init: Init,
        decay: bool,
        stored: bool,
    ) -> Result<Param> {
        let name = self.full_name(name);
        let value = match &self.source {
            Source::Init { seed } => initial(&Rng::named(*seed, &name), &shape, init)?,
            Source::Outline => {
                Tensor::zeros([1], self.dtype, &self.device)?.broadcast_to(shape.clone())?
            }
            Source::Load(source) | Source::Borrow(source) => {
                source.tensor(&name)?.ok_or_else(|| {
                    let (given, valid) = ("missing", format!("a tensor {shape} in the checkpoint"));
                    Error::argument("load", name.clone(), given, valid)
                })?
            }
        };
        if value.shape() != &shape {
            return Err(Error::shape("load", name, value.shape(), shape.to_string()));
        }
        let mut made = self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if made.iter().any(|param| param.name() == name) {
            return Err(Error::internal(format!("parameter {name} is made twice")));
        }
        // Loaded tensors may be views of a mapped file; masters are owned, so that they can be updated.
        let stays = stored && (self.as_stored || !value.dtype().is_float()) && !self.is_new();
        let dtype = self.matrices.filter(|_| stored && !self.is_new()).unwrap_or(self.dtype);
        let value = if stays { value } else { value.to_dtype(dtype)? };
        let value = value.to_device(&self.device)?;
        let param = match self.source {
            Source::Borrow(_) => Param(Arc::new(Inner { name, decay, value: Mutex::new(value) })),
            _ => Param::new(name, decay, value),
        };
        made.push(param.clone());
        Ok(param)
    }

    /// Everything made so far by this builder and those derived from it.
    pub fn params(&self) -> ParamSet {
        ParamSet(self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone())
    }

    /// Names in the source that no parameter has taken, for complaints about unexpected tensors.
    pub fn unused(&self) -> Vec<String> {
        let params = self.params();
        let taken: BTreeSet<&str> = params.iter().map(Param::name).collect();
        match self.source.tensors() {
            None => Vec::new(),
            Some(source) => {
                source.names().into_iter().filter(|name| !taken.contains(name.as_str())).collect()
            }
        }
    }
}

fn initial(rng: &Rng, shape: &Shape, init: Init) -> Result<Tensor> {
    match init {
        Init::Constant(value) => Tensor::full(value, shape, &Device::Cpu),
        Init::Uniform(low, high) => rng.uniform(low, high, shape),
        Init::Normal(std) => rng.normal(0.0, std, shape),
        Init::Map(map) => {
            let mut tensor = rng.uniform(0.0, 1.0, shape)?;
            tensor.as_slice_mut::<f64>()?.iter_mut().for_each(|value| *value = map(*value));
            Ok(tensor)
        }
        Init::Index(map) => {
            let last = shape.dims().last().copied().unwrap_or(1);
            let values = (0..shape.elem_count()).map(|index| map(index % last)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
    }
}

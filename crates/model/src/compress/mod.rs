//! Compressing a checkpoint: every linear weight becomes the nearest structured matrix that a budget
//! allows; and the way back.
//!
//! [`compress`] loads a model, computes how far each weight is from each format that was asked for,
//! chooses (`choose`) and writes our folder: the config names the format of every weight
//! (`weight_overrides`), `compress.json` holds the [`Report`]. All projections are closed forms
//! ([`danaus_matrix::structured::factor::project`]); no data is needed. Embedding, positions, head,
//! norms and biases stay as they are.
//!
//! [`densify`] multiplies structured weights out, in f64, and writes the same model with dense ones.
//!
//! Weights that a source has apart (q, k, v) are compressed apart. Quantised weights are compressed from
//! the numbers they stand for. Sources: Dao et al., Monarch, ICML 2022 (projection, and its use on
//! trained checkpoints); the choice is a knapsack with several choices a layer, solved on convex hulls.

mod candidates;
pub mod choose;
mod densify;
mod report;
mod write;

#[cfg(test)]
mod tests;

pub use candidates::Candidates;
pub use densify::densify;
pub use report::{Report, WeightReport};

use crate::checkpoint::{Model, Opened};
use crate::config::Config;
use crate::decoder::Compute;
use crate::{Error, Result};
use choose::{Choice, choose, least};
use danaus_matrix::StructuredMatrix;
use danaus_matrix::structured::Format;
use danaus_matrix::structured::factor::{Projected, errors, project};
use danaus_tensor::param::name_matches;
use danaus_tensor::{DType, Device, MadeMatrix, ParamBuilder, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use write::{Replaced, refuse_existing, write};

/// What to choose from, and how far to go.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Formats, or families of them. A single format without budget and limit is given to all weights.
    pub formats: Vec<Candidates>,
    /// Parameters that the weights keep, as a share of what they have: above 0 and below 1. The sum of
    /// the squared relative errors is made as small as possible.
    pub budget: Option<f64>,
    /// Largest relative error (Frobenius norm) of a weight. Without budget each weight becomes as small
    /// as this allows.
    pub max_error: Option<f64>,
    /// Which weights: a name without the last part, `*` for any one part of it. The others stay.
    pub only: Option<String>,
    /// Element type of matrices; default that of the weight that is replaced.
    pub dtype: Option<DType>,
}

/// What has been done of a longer work: weights so far, of how many, and the next one.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize, &str);

/// Reads the model at `source`, compresses its linear weights and writes our folder at `out`.
///
/// # Errors
/// When the source cannot be read, something lies at `out`, options contradict each other or do not fit
/// any weight, or the budget cannot be reached.
pub fn compress(source: &Path, out: &Path, options: &Options, watch: Watch) -> Result<Report> {
    check(options)?;
    refuse_existing(out)?;
    let source = Source::open(source)?;
    let chosen = chosen_weights(&source, options)?;
    let plan = Plan::new(&source, chosen, options, watch)?;
    let picked = plan.pick(options)?;
    let (mut replaced, mut report) = (Vec::new(), Report::new(&source.model));
    let mut config = source.model.decoder.config().clone();
    let count = plan.weights.len();
    for (index, (weight, picked)) in plan.weights.into_iter().zip(picked).enumerate() {
        let Weight { made, before, mut options } = weight;
        let option = options.swap_remove(picked);
        if let Some(format) = option.format {
            watch(index, count, &made.name);
            let projected = match option.projected {
                Some(projected) => projected,
                None => project(&source.dense(&made)?, format)?,
            };
            config.weight_overrides.insert(made.name.clone(), format);
            report.add(&made, (before, option.count), String::from(format), option.error);
            replaced.push(Replaced { made, projected });
        } else {
            report.add(&made, (before, before), made.format.clone(), 0.0);
        }
    }
    report.finish(&source, &replaced);
    write(&source, &config, replaced, out, (options.dtype, &report))?;
    Ok(report)
}

fn check(options: &Options) -> Result<()> {
    if options.formats.is_empty() {
        return Err(Error::argument("format", "missing", Candidates::VALID));
    }
    if let Some(budget) = options.budget.filter(|budget| !(*budget > 0.0 && *budget < 1.0)) {
        return Err(Error::argument("budget", budget, "a share of the parameters between 0 and 1"));
    }
    if let Some(error) = options.max_error.filter(|error| !(*error >= 0.0 && error.is_finite())) {
        return Err(Error::argument("max-error", error, "a relative error from 0 on"));
    }
    let bounded = options.budget.is_some() || options.max_error.is_some();
    match &options.formats[..] {
        [Candidates::Only(_)] => Ok(()),
        _ if bounded => Ok(()),
        several => {
            let names: Vec<String> = several.iter().map(Candidates::to_string).collect();
            let valid = "one format with its number, or more with a budget or a largest error";
            Err(Error::argument("format", names.join(", "), valid))
        }
    }
}

/// A loaded model and its parameters by name.
struct Source {
    model: Model,
    tensors: Arc<BTreeMap<String, Tensor>>,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let model = Opened::open_dequantized(path)?.load(Compute::default())?;
        let params = model.decoder.params().iter();
        let tensors = params.map(|param| (param.name().to_string(), param.tensor().detach()));
        let tensors = Arc::new(tensors.collect());
        Ok(Self { model, tensors })
    }

    fn config(&self) -> &Config {
        self.model.decoder.config()
    }

    /// A weight as it is stored, in f64.
    fn matrix(&self, made: &MadeMatrix) -> Result<Box<dyn StructuredMatrix>> {
        let params = ParamBuilder::load(self.tensors.clone(), DType::F64, Device::Cpu);
        let format = Format::try_from(made.format.clone())?;
        Ok(format.build_table(&params.pp(&made.name), made.shape, 1.0)?)
    }

    /// All its elements, in f64.
    fn dense(&self, made: &MadeMatrix) -> Result<Tensor> {
        let matrix = self.matrix(made)?;
        Ok(matrix.to_dense()?.detach().contiguous()?)
    }
}

/// The weights that `only` names.
fn chosen_weights(source: &Source, options: &Options) -> Result<Vec<MadeMatrix>> {
    let all = source.model.decoder.matrices();
    let wanted = |made: &&MadeMatrix| {
        options.only.as_ref().is_none_or(|pattern| name_matches(pattern, &made.name))
    };
    let chosen: Vec<MadeMatrix> = all.iter().filter(wanted).cloned().collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().take(4).map(|made| made.name.as_str()).collect();
        let given = options.only.as_deref().unwrap_or("a model without linear weights");
        return Err(Error::argument("only", given, format!("such as {}", names.join(", "))));
    }
    Ok(chosen)
}

/// One way to store a weight; without format as it is.
struct Way {
    format: Option<Format>,
    count: usize,
    error: f64,
    /// Kept where it is the only way, so that nothing is computed twice.
    projected: Option<Projected>,
}

struct Weight {
    made: MadeMatrix,
    before: usize,
    options: Vec<Way>,
}

struct Plan {
    weights: Vec<Weight>,
}

impl Plan {
    /// How far every weight is from every format that fits it.
    fn new(
        source: &Source,
        chosen: Vec<MadeMatrix>,
        options: &Options,
        watch: Watch,
    ) -> Result<Self> {
        let everywhere = options.budget.is_none() && options.max_error.is_none();
        let total = chosen.len();
        let mut weights = Vec::with_capacity(total);
        for (index, made) in chosen.into_iter().enumerate() {
            watch(index, total, &made.name);
            let [rows, cols] = made.shape;
            let before = Format::try_from(made.format.clone())?.elem_count(rows, cols);
            let mut formats: Vec<Format> = Vec::new();
            for format in options.formats.iter().flat_map(|one| one.formats(made.shape)) {
                let smaller = everywhere || format.elem_count(rows, cols) < before;
                if smaller && !formats.contains(&format) {
                    formats.push(format);
                }
            }
            let found = ways(source, &made, &formats)?;
            let stays = Way { format: None, count: before, error: 0.0, projected: None };
            let options = match everywhere && !found.is_empty() {
                true => found,
                false => std::iter::once(stays).chain(found).collect(),
            };
            weights.push(Weight { made, before, options });
        }
        if weights.iter().all(|weight| weight.options.iter().all(|way| way.format.is_none())) {
            let names: Vec<String> = options.formats.iter().map(Candidates::to_string).collect();
            let valid =
                "one that fits the sizes of some weight, and is smaller where there is a bound";
            return Err(Error::argument("format", names.join(", "), valid));
        }
        Ok(Self { weights })
    }

    /// Which way each weight takes.
    fn pick(&self, options: &Options) -> Result<Vec<usize>> {
        let within = |way: &Way| options.max_error.is_none_or(|most| way.error <= most);
        let of = |weight: &Weight| -> Vec<Choice> {
            let ways = weight.options.iter().enumerate().filter(|(_, way)| within(way));
            ways.map(|(index, way)| Choice::new(index, way.count, way.error)).collect()
        };
        let choices: Vec<Vec<Choice>> = self.weights.iter().map(of).collect();
        let Some(share) = options.budget else { return Ok(least(&choices)) };
        let before: usize = self.weights.iter().map(|weight| weight.before).sum();
        choose(&choices, (share * before as f64) as usize).map_err(|smallest| {
            let reached = smallest as f64 / before.max(1) as f64;
            let valid =
                format!("at least {reached:.4}, which is what these formats and errors reach");
            Error::argument("budget", share, valid)
        })
    }
}

/// The formats of a weight with what they cost.
fn ways(source: &Source, made: &MadeMatrix, formats: &[Format]) -> Result<Vec<Way>> {
    let [rows, cols] = made.shape;
    let way = |format: Format, error: f64, projected: Option<Projected>| {
        let count = format.elem_count(rows, cols);
        Way { format: Some(format), count, error, projected }
    };
    match formats {
        [] => Ok(Vec::new()),
        [format] => {
            let projected = project(&source.dense(made)?, *format)?;
            Ok(vec![way(*format, projected.relative_error, Some(projected))])
        }
        several => {
            let found = errors(&source.dense(made)?, several)?;
            Ok(several.iter().zip(found).map(|(format, error)| way(*format, error, None)).collect())
        }
    }
}

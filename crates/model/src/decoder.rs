//! The decoder: the one architecture, written once.
//!
//! Parameters: `embedding.weight` `[vocab, embedding_width]`, `positions.weight` where learned,
//! `layers.N.{norm, mixer, norm2, mlp}.*`, `norm.weight`, and `head.weight` unless tied. Where the
//! embedding is not as wide as the residual stream (OPT), `project_in` and `project_out` connect them.

use crate::block::{Block, Norm, Shared};
use crate::config::Config;
use crate::{Error, Result};
use danaus_kernel::ops::cross_entropy::Options as LossOptions;
use danaus_kernel::ops::cross_entropy::linear::linear_cross_entropy;
use danaus_kernel::ops::dropout::{Dropout, dropout};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::quantized::{Activations, INTEGER};
use danaus_matrix::mixer::Rope;
use danaus_matrix::state::{Fit, StepMemory, StepTokens};
use danaus_matrix::structured::{Dense, Format};
use danaus_matrix::{LayerState, SeqBatch, StatePool, StructuredMatrix};
use danaus_runtime::memory::available_bytes;
use danaus_tensor::{DType, Device, Init, MadeMatrix, ParamBuilder, ParamSet, Tensor, checkpoint};
use std::sync::Arc;

/// How a model computes; nothing of this is part of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Compute {
    /// Element type of activations; parameters stay what they are and are cast on the tape.
    pub dtype: DType,
    /// Keep only block inputs in training and compute blocks again in backward.
    pub recompute: bool,
    /// Probability with which training drops an element of the embedding or of what a block adds to the
    /// residual stream.
    pub dropout: f64,
    /// What products with quantised matrices see of activations: all bits, or eight.
    pub activations: Activations,
    /// Where parameters, activations and states are.
    pub device: Device,
}

impl Compute {
    /// On the processor in this element type.
    pub const fn new(dtype: DType) -> Self {
        let activations = Activations::F32;
        Self { dtype, recompute: false, dropout: 0.0, activations, device: Device::Cpu }
    }
}

impl Default for Compute {
    fn default() -> Self {
        Self::new(DType::F32)
    }
}

/// What is dropped in a training step: [`Compute::dropout`] with a mask of its own for every site.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// Seed of the run.
    pub seed: u64,
    /// A number below 2^48 that no other step of the run has.
    pub step: u64,
}

/// A language model.
pub struct Decoder {
    config: Config,
    compute: Compute,
    params: ParamSet,
    /// The weights whose format the config chooses.
    matrices: Vec<MadeMatrix>,
    embedding: Box<dyn StructuredMatrix>,
    positions: Option<Box<dyn StructuredMatrix>>,
    /// Between the widths of embedding and residual stream: in and out.
    projections: Option<[Box<dyn StructuredMatrix>; 2]>,
    blocks: Vec<Arc<Block>>,
    norm: Norm,
    head: Option<Box<dyn StructuredMatrix>>,
}

impl Decoder {
    /// Makes (or loads) all parameters.
    ///
    /// # Errors
    /// When the config's parts do not fit, a tensor is missing or has another shape, or activations are
    /// to be rounded for quantised matrices and there are none.
    pub fn build(params: &ParamBuilder, config: &Config, compute: Compute) -> Result<Self> {
        config.check()?;
        if !(0.0..1.0).contains(&compute.dropout) {
            return Err(Error::argument("dropout", compute.dropout, "0 or more, less than 1"));
        }
        let formats = config.weight_overrides.iter();
        let formats = formats.map(|(name, format)| (name.clone(), String::from(*format)));
        let params = &params.clone().with_round_inputs(compute.activations == Activations::Int8);
        let params = &params.clone().with_formats(formats);
        let (vocab, d, width) = (config.vocab_size, config.d_model, config.embedding_width());
        let table = |name: &str, rows, cols| table(&params.pp(name), [rows, cols]);
        let mixers = config.mixers()?;
        let attention = config.attention.as_ref();
        let rope = attention.and_then(|heads| Rope::new(heads, d, config.max_positions));
        let (depth, dtype) = (mixers.len(), compute.dtype);
        let shared = Shared { config, depth, rope: rope.map(Arc::new), dtype };
        let block = |(index, kind)| {
            Ok(Arc::new(Block::build(&params.pp("layers").pp(index), &shared, kind)?))
        };
        let positions = match config.learned_positions {
            true => Some(table("positions", config.max_positions + config.position_offset, d)?),
            false => None,
        };
        let projections = match config.embedding_width {
            Some(_) => Some([
                config.weights.build(&params.pp("project_in"), [d, width], 1.0)?,
                config.weights.build(&params.pp("project_out"), [width, d], 1.0)?,
            ]),
            None => None,
        };
        let head = if config.tied_head { None } else { Some(table("head", vocab, width)?) };
        let embedding = table("embedding", vocab, width)?;
        let blocks = mixers.into_iter().enumerate().map(block).collect::<Result<_>>()?;
        let norm = Norm::build(&params.pp("norm"), &config.norm, d)?;
        let matrices = params.matrices();
        config.check_overrides(&matrices)?;
        let (config, params) = (config.clone(), params.params());
        check_activations(&params, compute)?;
        Ok(Self {
            config,
            compute,
            params,
            matrices,
            embedding,
            positions,
            projections,
            blocks,
            norm,
            head,
        })
    }

    /// A new model from a seed.
    ///
    /// # Errors
    /// When the config's parts do not fit, or memory does not suffice.
    pub fn init(config: &Config, seed: u64, compute: Compute) -> Result<Self> {
        config.check_memory(available_memory(&compute.device)?)?;
        let dtype = if compute.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Self::build(&ParamBuilder::init(seed, dtype, compute.device), config, compute)
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// All parameters.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// The weights whose format the config chooses: all but embedding, positions and head.
    pub fn matrices(&self) -> &[MadeMatrix] {
        &self.matrices
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.params.iter().next().map_or(Device::Cpu, |param| param.tensor().device())
    }

    /// Ids as an index, checked.
    fn wide_ids(&self, ids: &[u32]) -> Result<Vec<i64>> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            let valid = format!("0..{} (vocab_size)", self.config.vocab_size);
            return Err(Error::argument("token id", id, valid));
        }
        Ok(ids.iter().map(|&id| i64::from(id)).collect())
    }

    /// Rows of the table of learned positions.
    fn position_rows(&self, positions: &[i64]) -> Vec<i64> {
        let offset = self.config.position_offset as i64;
        positions.iter().map(|position| position + offset).collect()
    }

    fn embed(&self, ids: &[u32], positions: &[i64]) -> Result<Tensor> {
        let list =
            |numbers: Vec<i64>| Tensor::from_slice(&numbers, [numbers.len()], &self.device());
        let rows = match self.positions {
            Some(_) => Some(list(self.position_rows(positions))?),
            None => None,
        };
        self.embed_on_device(&list(self.wide_ids(ids)?)?, rows.as_ref())
    }

    /// Embeddings of ids and, where there are learned positions, of these rows of them.
    fn embed_on_device(&self, ids: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.embedding.gather_rows(ids)?.to_dtype(self.stream_dtype())?;
        if let Some([into, _]) = &self.projections {
            x = into.apply(&x, Extras::default())?;
        }
        if let (Some(table), Some(rows)) = (&self.positions, rows) {
            x = x.add(&table.gather_rows(rows)?.to_dtype(x.dtype())?)?;
        }
        Ok(x)
    }

    /// Element type of the residual stream.
    fn stream_dtype(&self) -> DType {
        match self.config.residual_f32 {
            true => self.compute.dtype.accumulator(),
            false => self.compute.dtype,
        }
    }

    /// From the residual stream to what the head reads.
    fn finish(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(x)?.to_dtype(self.compute.dtype)?;
        Ok(match &self.projections {
            Some([_, out]) => out.apply(&x, Extras::default())?,
            None => x,
        })
    }

    fn check_lengths(&self, longest: usize) -> Result<()> {
        if longest <= self.config.max_positions {
            return Ok(());
        }
        let valid = format!("at most {} tokens (max_positions)", self.config.max_positions);
        Err(Error::argument("sequence length", longest, valid))
    }

    /// What the head reads: hidden states after the last norm, `[tokens, embedding_width]`.
    ///
    /// # Errors
    /// When an id is out of range or a sequence too long.
    pub fn hidden(&self, ids: &[u32], batch: &SeqBatch) -> Result<Tensor> {
        self.hidden_states(ids, batch, |_, _| {})
    }

    /// As [`Self::hidden`], showing the stream before the first block and after each (index 0, 1, ...).
    ///
    /// # Errors
    /// When an id is out of range or a sequence too long.
    pub fn hidden_states(
        &self,
        ids: &[u32],
        batch: &SeqBatch,
        visit: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        self.run(ids, batch, None, visit)
    }

    fn run(
        &self,
        ids: &[u32],
        batch: &SeqBatch,
        noise: Option<Noise>,
        mut visit: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        self.check_lengths(batch.max_seqlen())?;
        // Site 0 is the embedding; a block has two.
        let drop = |site: usize| {
            let p = self.compute.dropout;
            let Noise { seed, step } = noise.filter(|_| p > 0.0)?;
            Some(Dropout { p, seed, stream: (step << 16) | site as u64 })
        };
        let mut x = self.embed(ids, &batch.positions())?;
        batch.check("decoder", &x)?;
        visit(0, &x);
        if let Some(drop) = drop(0) {
            x = dropout(&x, drop)?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let drops = [2 * index + 1, 2 * index + 2].map(drop);
            x = if self.compute.recompute {
                self.recomputed(block, &x, batch, drops)?
            } else {
                block.forward(&x, batch, drops)?
            };
            visit(index + 1, &x);
        }
        self.finish(&x)
    }

    fn recomputed(
        &self,
        block: &Arc<Block>,
        x: &Tensor,
        batch: &SeqBatch,
        drops: [Option<Dropout>; 2],
    ) -> Result<Tensor> {
        let (block, batch) = (block.clone(), batch.clone());
        let outputs = checkpoint(&[x], move |inputs| {
            // The tape's closures speak its own error type.
            let y = block.forward(&inputs[0], &batch, drops).map_err(|error| match error {
                Error::Tensor(error) => error,
                other => danaus_tensor::Error::internal(other.to_string()),
            })?;
            Ok(vec![y])
        })?;
        Ok(outputs[0].clone())
    }

    fn head_weight(&self) -> Result<Tensor> {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        Ok(head.to_dense()?.to_dtype(self.compute.dtype)?)
    }

    /// Logits of every token, `[tokens, vocab]`.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn logits(&self, ids: &[u32], batch: &SeqBatch) -> Result<Tensor> {
        self.project(&self.hidden(ids, batch)?)
    }

    /// Logits of hidden rows.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn project(&self, hidden: &Tensor) -> Result<Tensor> {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        Ok(head.apply(hidden, Extras::default())?)
    }

    /// Mean cross-entropy in nats over targets that are not ignored (-100). Full logits never exist.
    ///
    /// # Errors
    /// As [`Self::hidden`], and when there is not one target per token.
    pub fn loss(&self, ids: &[u32], targets: &[i64], batch: &SeqBatch) -> Result<Tensor> {
        self.loss_of(&self.hidden(ids, batch)?, targets)
    }

    /// As [`Self::loss`], with dropout.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn training_loss(
        &self,
        ids: &[u32],
        targets: &[i64],
        batch: &SeqBatch,
        noise: Noise,
    ) -> Result<Tensor> {
        self.loss_of(&self.run(ids, batch, Some(noise), |_, _| {})?, targets)
    }

    fn loss_of(&self, hidden: &Tensor, targets: &[i64]) -> Result<Tensor> {
        let targets = Tensor::from_slice(targets, [targets.len()], &hidden.device())?;
        Ok(linear_cross_entropy(hidden, &self.head_weight()?, &targets, LossOptions::default())?)
    }

    /// A pool of states for up to `capacity` sequences.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn state_pool(&self, capacity: usize) -> Result<StatePool> {
        let device = self.device();
        let fresh = self.blocks.iter().map(|block| {
            let state = block.mixer().init_state(self.compute.dtype)?;
            state.to_device(&device)
        });
        let fresh: Vec<LayerState> = fresh.collect::<danaus_tensor::Result<_>>()?;
        Ok(StatePool::new(fresh, capacity))
    }

    /// Prepares a decoding step of one token for each slot in the places that `memory` has for it; see
    /// `danaus_matrix::state`.
    ///
    /// # Errors
    /// When an id is out of range, a sequence grows too long, or a slot was released.
    pub fn enter_step(
        &self,
        ids: &[u32],
        pool: &mut StatePool,
        slots: &[danaus_matrix::state::Slot],
        memory: &mut StepMemory,
    ) -> Result<Fit> {
        let mut positions = Vec::with_capacity(slots.len());
        for &slot in slots {
            let before = pool.tokens(slot)?;
            self.check_lengths(before + 1)?;
            positions.push(before as i64);
        }
        let (ids, rows) = (self.wide_ids(ids)?, self.position_rows(&positions));
        Ok(pool.enter_step(slots, memory, &StepTokens { ids: &ids, rows: &rows })?)
    }

    /// Takes in the next tokens of several sequences and returns their hidden rows after the last norm.
    ///
    /// # Errors
    /// When an id is out of range, a sequence grows too long, or a slot was released.
    pub fn advance(
        &self,
        ids: &[u32],
        batch: &SeqBatch,
        pool: &mut StatePool,
        slots: &[danaus_matrix::state::Slot],
    ) -> Result<Tensor> {
        let mut positions = Vec::with_capacity(ids.len());
        for (slot, count) in slots.iter().zip(batch.lengths()) {
            let before = pool.tokens(*slot)?;
            self.check_lengths(before + count)?;
            positions.extend(before as i64..(before + count) as i64);
        }
        let mut x = match batch.step() {
            Some(step) => self.embed_on_device(&step.ids, Some(&step.rows))?,
            None => self.embed(ids, &positions)?,
        };
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.advance(&x, batch, &mut pool.layer(slots, index)?)?;
        }
        for (slot, count) in slots.iter().zip(batch.lengths()) {
            pool.advance(*slot, count)?;
        }
        self.finish(&x)
    }

    /// Arithmetic operations of a forward pass, head included.
    pub fn flops(&self, batch: &SeqBatch) -> u64 {
        let head = 2 * batch.tokens() * self.config.vocab_size * self.config.embedding_width();
        self.blocks.iter().map(|block| block.flops(batch)).sum::<u64>() + head as u64
    }
}

/// Refuses to round activations where no product would.
fn check_activations(params: &ParamSet, compute: Compute) -> Result<()> {
    let integer = |name: &str| INTEGER.iter().any(|kind| name.ends_with(&format!(".{kind}")));
    let f64 = compute.dtype == DType::F64;
    if compute.activations == Activations::Int8
        && (f64 || !params.iter().any(|param| integer(param.name())))
    {
        let names = INTEGER.map(|kind| kind.name()).join(", ");
        let valid = format!("f32 or bf16; int8 needs f32 activations and weights of {names}");
        return Err(Error::argument("compute", "int8", valid));
    }
    Ok(())
}

/// Memory that is free on a device, in bytes; `None` where the system does not say.
///
/// # Errors
/// When the device cannot be used.
pub fn available_memory(device: &Device) -> Result<Option<u64>> {
    Ok(match device {
        Device::Cpu => available_bytes(),
        Device::Cuda(_) => {
            let gpu = device.gpu()?;
            let told = |error| danaus_tensor::Error::from(error);
            // What our pool holds and nobody uses is free too.
            let statistics = gpu.memory_statistics().map_err(told)?;
            let (free, _) = gpu.memory_info().map_err(told)?;
            Some(free + statistics.reserved.saturating_sub(statistics.live))
        }
    })
}

/// Rows that ids choose. New ones are normal; loaded ones may be quantised blocks.
fn table(params: &ParamBuilder, shape: [usize; 2]) -> Result<Box<dyn StructuredMatrix>> {
    Ok(match params.is_new() {
        true => Box::new(Dense::build_with(params, shape, Init::Normal(0.02))?),
        false => Format::Dense.build_table(params, shape, 1.0)?,
    })
}

#[cfg(test)]
mod tests;

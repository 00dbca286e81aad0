//! A small task for tests: elementwise regression with parameters of several shapes.

use crate::task::{Identity, Loss, Moment, Task, Validation};
use crate::{Error, Result};
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Init, ParamBuilder, ParamSet, Tensor};
use serde_json::{Value, json};
use std::path::Path;

pub const WIDTH: usize = 24;

/// Fits `sum over layers of (x * matrix) + bias` to a fixed target.
pub struct Toy {
    params: ParamSet,
    position: u64,
    /// Batches in the data; `None` never ends.
    pub batches: Option<u64>,
    /// From this batch on the loss is not a number.
    pub broken_from: Option<u64>,
    /// From this batch on the loss is a thousand times as large.
    pub high_from: Option<u64>,
}

impl Toy {
    pub fn new(seed: u64) -> Self {
        let builder = ParamBuilder::init(seed, DType::F32, Device::Cpu);
        let layers = builder.pp("layers");
        let normal = Init::Normal(0.5);
        layers.pp(0).param("weight", [8, WIDTH], normal).unwrap();
        layers.pp(0).param_no_decay("bias", [WIDTH], normal).unwrap();
        // More than one piece of the fused pass.
        layers.pp(1).param("embed", [900, WIDTH], normal).unwrap();
        Self {
            params: builder.params(),
            position: 0,
            batches: None,
            broken_from: None,
            high_from: None,
        }
    }

    pub fn weights(&self) -> Vec<Vec<f32>> {
        self.params.iter().map(|param| param.tensor().to_vec::<f32>().unwrap()).collect()
    }
}

/// Rows of input, and the batch's number.
pub struct Rows(Tensor, u64);

impl Task for Toy {
    type Batch = Rows;

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn next_batch(&mut self) -> Result<Option<Rows>> {
        if self.batches.is_some_and(|batches| self.position >= batches) {
            return Ok(None);
        }
        // An odd batch is shorter, so that the weights of micro-batches matter.
        let rows = 5 - (self.position % 2) as usize;
        let x = Rng::new(7, self.position).normal(0.0, 1.0, [rows, 1, WIDTH])?;
        self.position += 1;
        Ok(Some(Rows(x.to_dtype(DType::F32)?, self.position - 1)))
    }

    fn loss(&self, Rows(x, number): &Rows, _: Moment) -> Result<Loss> {
        let tensor = |name: &str| self.params.get(name).unwrap().tensor();
        let weight = tensor("layers.0.weight");
        let embed = tensor("layers.1.embed");
        let shift = embed.mul(&embed)?.sum(0)?.affine(1e-3, 0.0)?;
        let y = x.mul(&weight)?.add(&tensor("layers.0.bias"))?.add(&shift)?;
        let error = y.sub(&x.affine(2.0, 1.0)?)?;
        let count = error.elem_count() as f64;
        let mut mean = error.mul(&error)?.sum_all()?.affine(1.0 / count, 0.0)?;
        if self.broken_from.is_some_and(|from| *number >= from) {
            mean = mean.affine(f64::NAN, 0.0)?;
        }
        if self.high_from.is_some_and(|from| *number >= from) {
            mean = mean.affine(1000.0, 0.0)?;
        }
        let rows = x.dims()[0] as u64;
        Ok(Loss { mean, targets: rows, tokens: rows, bytes: 0 })
    }

    fn validate(&self) -> Result<Option<Validation>> {
        let x = Rng::new(8, 0).normal(0.0, 1.0, [4, 1, WIDTH])?.to_dtype(DType::F32)?;
        let moment = Moment { seed: 0, step: 0, micro_batch: 0 };
        let loss = self.loss(&Rows(x, 0), moment)?.mean.to_scalar()?;
        Ok(Some(Validation { loss, bits_per_byte: None, accuracy: None }))
    }

    fn cursor(&self) -> Result<Value> {
        Ok(json!({ "position": self.position }))
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let position = cursor["position"].as_u64();
        self.position = position.ok_or_else(|| Error::config("cursor", cursor, "a position"))?;
        Ok(())
    }

    fn identity(&self) -> Result<Identity> {
        Ok(Identity { task: "toy".into(), model: json!({ "width": WIDTH }), tokenizer: None })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("config.json");
        std::fs::write(&path, "{}").map_err(Error::io(&path))
    }
}

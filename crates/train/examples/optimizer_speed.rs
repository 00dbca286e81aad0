//! Time of one optimiser update over 16 M parameters in 64 tensors, against the memory bandwidth that
//! a copy of the same machine reaches.
//!
//! `cargo run --release -p danaus-train --example optimizer_speed`

use danaus_tensor::{DType, Device, Init, ParamBuilder, Tensor, backward_with};
use danaus_train::optim::{GradientSet, Optimizer, OptimizerConfig, global_norm};
use std::time::Instant;

const TENSORS: usize = 64;
const ELEMENTS: usize = 1 << 18;
const ROUNDS: usize = 9;

fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() -> danaus_train::Result<()> {
    let builder = ParamBuilder::init(0, DType::F32, Device::Cpu);
    for index in 0..TENSORS {
        builder.pp(index).param("weight", [512, ELEMENTS / 512], Init::Normal(1.0))?;
    }
    let params = builder.params();
    let one = Tensor::full(1.0f32, [512, ELEMENTS / 512], &Device::Cpu)?;
    let leaves: Vec<Tensor> = params.iter().map(|param| param.tensor()).collect();
    let pairs: Vec<(&Tensor, &Tensor)> = leaves.iter().map(|leaf| (leaf, &one)).collect();
    let gradients = GradientSet::new(&params, backward_with(&pairs)?)?;
    drop(leaves);

    let total = (TENSORS * ELEMENTS) as f64;
    // The roofline: reading 64 MiB and adding it to 64 MiB, 12 bytes an element, into warm memory.
    let (a, b) = (Tensor::zeros([TENSORS * ELEMENTS], DType::F32, &Device::Cpu)?, 1.0f32);
    let b = Tensor::full(b, [TENSORS * ELEMENTS], &Device::Cpu)?;
    let add = median(|| drop(a.add(&b)));
    println!("add               {:6.2} ms  {:5.1} GB/s", add * 1e3, 12.0 * total / add / 1e9);

    let mut norm = 0.0;
    let seconds = median(|| norm = global_norm(&gradients).unwrap_or(f64::NAN));
    let rate = 4.0 * total / seconds / 1e9;
    println!("global norm       {:6.2} ms  {rate:5.1} GB/s  ({norm:.1})", seconds * 1e3);
    // Bytes an element: value and state read and written, gradient read.
    for (name, bytes) in [("adamw", 28.0), ("lion", 20.0), ("sgd", 20.0)] {
        let mut optimizer = Optimizer::new(OptimizerConfig::named(name)?, &params)?;
        let mut failed = None;
        let seconds = median(|| failed = optimizer.step(&gradients, 1.0, 1.0).err());
        if let Some(error) = failed {
            return Err(error);
        }
        let rate = bytes * total / seconds / 1e9;
        println!("{name:<16}  {:6.2} ms  {rate:5.1} GB/s", seconds * 1e3);
    }
    Ok(())
}

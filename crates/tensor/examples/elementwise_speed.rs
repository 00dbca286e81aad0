//! Times elementwise operators, copies and reductions through the public API, one line each.
//!
//! `cargo run --release -p danaus-tensor --example elementwise_speed [repetitions]`; the twin for
//! PyTorch is `benches/peers/elementwise_torch.py`. Run both in turn and compare medians.

use danaus_tensor::{DType, Device, Result, Tensor, ops::expr::Expr};
use std::time::Instant;

fn median_ms(repetitions: usize, f: &dyn Fn() -> Result<Tensor>) -> Result<f64> {
    let mut times = Vec::new();
    drop(f()?);
    for _ in 0..repetitions {
        let start = Instant::now();
        let result = f()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        drop(result);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn main() -> Result<()> {
    let repetitions = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(11);
    let cpu = Device::Cpu;
    let side = 4096;
    let wave = Tensor::range(0.0, (side * side) as f64, 1.0, DType::F32, &cpu)?.sin()?;
    let (a, b) = (wave.reshape([side, side])?, wave.flip(0)?.copy()?.reshape([side, side])?);
    let (row, column) = (a.narrow(0, 0, 1)?, a.narrow(1, 0, 1)?.copy()?);
    let (a16, b16) = (a.to_dtype(DType::BF16)?, b.to_dtype(DType::BF16)?);
    let chain = Expr::parse("where(x0 > 0, x0 * x1, 0.5 * exp(x0))")?;
    let index = Tensor::range(0.0, side as f64, 1.0, DType::I64, &cpu)?.flip(0)?.copy()?;
    type Case<'a> = (&'a str, Box<dyn Fn() -> Result<Tensor> + 'a>);
    let cases: Vec<Case> = vec![
        ("add", Box::new(|| a.add(&b))),
        ("add row", Box::new(|| a.add(&row))),
        ("add column", Box::new(|| a.add(&column))),
        ("add bf16", Box::new(|| a16.add(&b16))),
        ("exp", Box::new(|| a.exp())),
        ("sin", Box::new(|| a.sin())),
        ("tanh", Box::new(|| a.tanh())),
        ("fused", Box::new(|| Tensor::fused(&chain, &[&a, &b]))),
        ("gt", Box::new(|| a.gt(&b))),
        ("to bf16", Box::new(|| a.to_dtype(DType::BF16))),
        ("from bf16", Box::new(|| a16.to_dtype(DType::F32))),
        ("to f16", Box::new(|| a.to_dtype(DType::F16))),
        ("transpose", Box::new(|| a.transpose(0, 1)?.contiguous())),
        ("cat", Box::new(|| Tensor::cat(&[&row, &a], 0))),
        ("sum all", Box::new(|| a.sum_all())),
        ("sum rows", Box::new(|| a.sum(1))),
        ("sum columns", Box::new(|| a.sum(0))),
        ("max rows", Box::new(|| a.max(1))),
        ("argmax rows", Box::new(|| a.argmax(1))),
        ("cumsum rows", Box::new(|| a.cumsum(1, false))),
        ("index select", Box::new(|| a.index_select(0, &index))),
        ("sort 1M", Box::new(|| Ok(a.narrow(0, 0, 256)?.sort(1, false)?.0))),
        ("topk 1M", Box::new(|| Ok(a.narrow(0, 0, 256)?.topk(1, 8, true)?.0))),
    ];
    let small = a.narrow(0, 0, 1)?.narrow(1, 0, 8)?.copy()?;
    for (name, f) in &cases {
        println!("{name:<14} {:9.3} ms", median_ms(repetitions, f)?);
    }
    let thousand = || (0..1000).try_fold(small.clone(), |sum, _| sum.add(&small));
    println!("{:<14} {:9.3} ms", "1000 tiny adds", median_ms(repetitions, &thousand)?);
    Ok(())
}

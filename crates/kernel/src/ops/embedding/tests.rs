//! Lookup and gradient against the reference, with frequent, absent and padding ids.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads;
use danaus_tensor::{DType, Device};
use danaus_testkit::{gradcheck, randn};
use half::bf16;

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// Half of the ids are 3, many are absent.
fn ids(len: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|i| if i % 2 == 0 { 3 } else { ((i * 31) % vocab) as u32 }).collect()
}

#[test]
fn lookup() {
    let (vocab, dim) = (50, 33);
    let weight = values(vocab * dim);
    let ids = ids(900, vocab);
    let (mut y, mut exact) = (vec![0f32; 900 * dim], vec![0f32; 900 * dim]);
    cpu::forward(dim, &weight, &ids, &mut y);
    reference::forward(dim, &weight, &ids, &mut exact);
    assert_eq!(y, exact);
}

#[test]
fn gradient() {
    for (vocab, dim, len, skip) in [(5, 3, 9, None), (600, 33, 900, Some(31)), (9, 1100, 70, None)]
    {
        let ids = ids(len, vocab);
        let dy = values(len * dim);
        let dy64: Vec<f64> = dy.iter().map(|&x| x.into()).collect();
        let mut exact = vec![9.0; vocab * dim];
        reference::backward(dim, &ids, &dy64, skip, &mut exact);
        let narrow: Vec<bf16> = dy.iter().map(|&x| bf16::from_f32(x)).collect();
        for isa in Isa::ALL {
            let (mut got, mut got16) = (vec![9f32; vocab * dim], vec![bf16::ONE; vocab * dim]);
            let ran = with_isa(isa, || {
                cpu::backward(dim, &ids, &dy, skip, &mut got);
                cpu::backward(dim, &ids, &narrow, skip, &mut got16);
            });
            if ran.is_none() {
                continue;
            }
            for i in 0..exact.len() {
                // At most 450 summands below 1: their f32 roundings; bf16 inputs carry 2^-9 each.
                assert!((f64::from(got[i]) - exact[i]).abs() < 450.0 * 3e-7 * 4.0, "{isa:?} {i}");
                assert!(
                    (got16[i].to_f64() - exact[i]).abs() < 450.0 / 512.0 + exact[i].abs() / 256.0
                );
            }
        }
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let (vocab, dim, len) = (300, 65, 4000);
    let (ids, dy) = (ids(len, vocab), values(len * dim));
    let run = |n| {
        let mut grad = vec![0f32; vocab * dim];
        threads::with_threads(n, || cpu::backward(dim, &ids, &dy, None, &mut grad));
        grad
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn gradients_through_the_tape() -> Result<()> {
    let weight = randn(1, &[5, 3], DType::F64);
    let ids = Tensor::from_vec(vec![1i64, 4, 1, 0], [2, 2], &Device::Cpu)?;
    let inputs = [weight.clone(), ids.clone()];
    gradcheck(|t| Ok(vec![embedding(&t[0], &t[1], None)?]), &inputs, 1e-8);
    let leaf = weight.tracked();
    let loss = embedding(&leaf, &ids, Some(1))?.sum_all()?;
    let grad = loss.backward()?.get(&leaf).unwrap().to_vec::<f64>()?;
    assert_eq!(grad, [1., 1., 1., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 1., 1.]);
    Ok(())
}

#[test]
fn bad_ids_are_named() -> Result<()> {
    let weight = randn(1, &[5, 3], DType::F32);
    for id in [-1i32, 5] {
        let ids = Tensor::from_vec(vec![0, id], [2], &Device::Cpu)?;
        let message = embedding(&weight, &ids, None).map(|_| ()).unwrap_err().to_string();
        let expected = format!("embedding: ids is {id}, valid is 0 to vocab - 1, vocab = 5");
        assert_eq!(message, expected);
    }
    Ok(())
}

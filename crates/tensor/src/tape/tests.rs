//! The tape itself: accumulation, freeing, checkpointing, long chains.

use crate::{Device, Result, Tensor, backward_with, checkpoint, no_grad};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap().tracked()
}

fn grad(loss: &Tensor, leaf: &Tensor) -> Vec<f64> {
    loss.backward().unwrap().get(leaf).unwrap().to_vec().unwrap()
}

#[test]
fn a_leaf_used_twice_gets_both_gradients() -> Result<()> {
    let x = leaf(&[1.0, 2.0]);
    let y = x.mul(&x)?.add(&x.affine(3.0, 0.0)?)?.sum_all()?;
    assert_eq!(grad(&y, &x), [5.0, 7.0]);
    Ok(())
}

#[test]
fn gradients_pass_through_views_and_broadcasts() -> Result<()> {
    let x = leaf(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let w = leaf(&[10.0, 100.0]);
    let m = x.reshape([2, 3])?.transpose(0, 1)?.mul(&w)?; // columns weighted
    let y = m.narrow(0, 1, 2)?.sum_all()?;
    let gradients = y.backward()?;
    assert_eq!(gradients.get(&x).unwrap().to_vec::<f64>()?, [0.0, 10.0, 10.0, 0.0, 100.0, 100.0]);
    assert_eq!(gradients.get(&w).unwrap().to_vec::<f64>()?, [5.0, 11.0]);
    Ok(())
}

#[test]
fn several_outputs_with_cotangents() -> Result<()> {
    let x = leaf(&[2.0, 3.0]);
    let (a, b) = (x.mul(&x)?, x.affine(4.0, 1.0)?);
    let ca = Tensor::from_vec(vec![1.0, 0.0], [2], &Device::Cpu)?;
    let cb = Tensor::from_vec(vec![0.0, 0.5], [2], &Device::Cpu)?;
    let gradients = backward_with(&[(&a, &ca), (&b, &cb)])?;
    assert_eq!(gradients.get(&x).unwrap().to_vec::<f64>()?, [4.0, 2.0]);
    Ok(())
}

#[test]
fn no_grad_records_nothing_and_a_graph_is_used_once() -> Result<()> {
    let x = leaf(&[1.0]);
    assert!(!no_grad(|| x.mul(&x))?.is_tracked());
    let y = x.mul(&x)?.sum_all()?;
    y.backward()?;
    let again = y.backward().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(again.contains("already used"), "{again}");
    Ok(())
}

#[test]
fn checkpointing_changes_nothing_but_memory() -> Result<()> {
    let x = leaf(&[1.0, -2.0, 0.5]);
    let w = leaf(&[0.3, 0.2, -1.0]);
    let block = |x: &Tensor, w: &Tensor| -> Result<Tensor> { x.mul(w)?.mul(x)?.add(w) };
    let plain = block(&block(&x, &w)?, &w)?.sum_all()?;
    let captured = w.clone();
    let saved = move |inputs: &[Tensor]| Ok(vec![block(&inputs[0], &captured)?]);
    let first = checkpoint(&[&x], saved.clone())?;
    let second = checkpoint(&[&first[0]], saved)?[0].sum_all()?;
    assert_eq!(plain.to_vec::<f64>()?, second.to_vec::<f64>()?);
    let (a, b) = (plain.backward()?, second.backward()?);
    for leaf in [&x, &w] {
        let exact = a.get(leaf).unwrap().to_vec::<f64>()?;
        for (left, right) in exact.iter().zip(b.get(leaf).unwrap().to_vec::<f64>()?) {
            assert!((left - right).abs() < 1e-14, "{left} {right}");
        }
    }
    Ok(())
}

#[test]
fn a_chain_of_a_million_operators_is_freed_without_recursion() -> Result<()> {
    let x = leaf(&[1.0]);
    let mut y = x.clone();
    for _ in 0..1_000_000 {
        y = y.affine(1.0, 0.0)?;
    }
    assert_eq!(grad(&y, &x), [1.0]);
    let mut unused = x.clone();
    for _ in 0..1_000_000 {
        unused = unused.affine(1.0, 0.0)?;
    }
    drop(unused);
    Ok(())
}

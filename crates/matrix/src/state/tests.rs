//! Slots: marks, commits, snapshots, for caches and recurrent states alike.

use super::*;
use crate::SeqBatch;
use crate::mixer::{Attention, AttentionConfig, Mamba2, Mamba2Config, SequenceMixer};
use crate::structured::Format;
use danaus_tensor::{DType, Device, ParamBuilder, Tensor};
use danaus_testkit::{assert_close, randn};

const D_MODEL: usize = 8;

fn layers() -> Vec<Box<dyn SequenceMixer>> {
    let params = |seed| ParamBuilder::init(seed, DType::F64, Device::Cpu);
    let attention = AttentionConfig { n_heads: 2, ..AttentionConfig::default() };
    let mamba = Mamba2Config { d_state: 4, head_dim: 8, ..Mamba2Config::default() };
    vec![
        Box::new(Attention::build(&params(1), &attention, D_MODEL, Format::Dense, 256).unwrap()),
        Box::new(Mamba2::build(&params(2), &mamba, D_MODEL, Format::Dense, 1.0).unwrap()),
    ]
}

fn pool(layers: &[Box<dyn SequenceMixer>], capacity: usize) -> StatePool {
    let fresh = layers.iter().map(|layer| layer.init_state(DType::F64).unwrap()).collect();
    StatePool::new(fresh, capacity)
}

/// One token through both layers.
fn step(layers: &[Box<dyn SequenceMixer>], pool: &mut StatePool, slot: Slot, token: u64) -> Tensor {
    let mut x = randn(token, &[1, D_MODEL], DType::F64);
    let batch = SeqBatch::equal(1, 1).unwrap();
    for (index, layer) in layers.iter().enumerate() {
        let mut states = pool.layer(&[slot], index).unwrap();
        x = layer.advance(&x, &batch, &mut states, None).unwrap();
    }
    x
}

#[test]
fn an_accepted_prefix_is_as_if_the_rest_never_was() {
    let layers = layers();
    for accepted in 0..=4 {
        let mut pool = pool(&layers, 2);
        let (slot, plain) = (pool.reserve().unwrap(), pool.reserve().unwrap());
        for token in 0..3 {
            step(&layers, &mut pool, slot, token);
            step(&layers, &mut pool, plain, token);
        }
        pool.advance(slot, 3).unwrap();
        pool.advance(plain, 3).unwrap();
        pool.begin(slot).unwrap();
        for token in 10..14 {
            step(&layers, &mut pool, slot, token);
            pool.append(slot).unwrap();
        }
        pool.commit(slot, accepted).unwrap();
        for token in 10..10 + accepted as u64 {
            step(&layers, &mut pool, plain, token);
        }
        pool.advance(plain, accepted).unwrap();
        assert_eq!(pool.hash(slot).unwrap(), pool.hash(plain).unwrap(), "{accepted} accepted");
        assert_eq!(pool.tokens(slot).unwrap(), 3 + accepted);
        let (a, b) = (step(&layers, &mut pool, slot, 99), step(&layers, &mut pool, plain, 99));
        assert_close("after the commit", &a, &b, 0.0);
    }
}

#[test]
fn a_snapshot_survives_what_follows() {
    let layers = layers();
    let mut pool = pool(&layers, 2);
    let slot = pool.reserve().unwrap();
    (0..70).for_each(|token| drop(step(&layers, &mut pool, slot, token)));
    pool.advance(slot, 70).unwrap();
    let (snapshot, hash) = (pool.snapshot(slot).unwrap(), pool.hash(slot).unwrap());
    let expected = step(&layers, &mut pool, slot, 500);
    (0..5).for_each(|token| drop(step(&layers, &mut pool, slot, 600 + token)));
    let other = pool.reserve().unwrap();
    for target in [slot, other] {
        pool.restore(target, &snapshot).unwrap();
        assert_eq!(pool.hash(target).unwrap(), hash);
        let found = step(&layers, &mut pool, target, 500);
        assert_close("restored", &found, &expected, 0.0);
    }
    assert!(pool.bytes() > 0);
}

#[test]
fn misuse_is_refused_by_name() {
    let layers = layers();
    let mut pool = pool(&layers, 1);
    let slot = pool.reserve().unwrap();
    let message = |result: Result<Slot>| result.unwrap_err().to_string();
    assert!(message(pool.reserve()).contains("all 1 slots taken"));
    assert!(pool.append(slot).is_err() && pool.commit(slot, 1).is_err());
    assert!(pool.layer(&[slot, slot], 0).is_err());
    pool.release(slot).unwrap();
    assert!(pool.release(slot).is_err() && pool.snapshot(slot).is_err());
    let again = pool.reserve().unwrap();
    assert!(pool.tokens(slot).is_err(), "an old handle reaches the new sequence");
    assert_eq!(pool.tokens(again).unwrap(), 0);
}

//! Slots: marks, commits, snapshots, for caches and recurrent states alike.

use super::*;
use crate::SeqBatch;
use crate::mixer::{Attention, AttentionConfig, Mamba2, Mamba2Config, SequenceMixer};
use crate::structured::Format;
use danaus_tensor::{DType, Device, ParamBuilder, Tensor, no_grad};
use danaus_testkit::{assert_close, randn};

const D_MODEL: usize = 8;

fn layers() -> Vec<Box<dyn SequenceMixer>> {
    let params = |seed| ParamBuilder::init(seed, DType::F64, Device::Cpu);
    let attention = AttentionConfig { n_heads: 2, ..AttentionConfig::default() };
    let convolved = AttentionConfig { conv_width: Some(3), ..attention.clone() };
    let mamba = Mamba2Config { d_state: 4, head_dim: 8, ..Mamba2Config::default() };
    vec![
        Box::new(Attention::build(&params(1), &attention, D_MODEL, Format::Dense, 256).unwrap()),
        Box::new(Attention::build(&params(3), &convolved, D_MODEL, Format::Dense, 256).unwrap()),
        Box::new(Mamba2::build(&params(2), &mamba, D_MODEL, Format::Dense, 1.0).unwrap()),
    ]
}

fn pool(layers: &[Box<dyn SequenceMixer>], capacity: usize) -> StatePool {
    let fresh = layers.iter().map(|layer| layer.init_state(DType::F64).unwrap()).collect();
    StatePool::new(fresh, capacity)
}

/// One token through all layers.
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

/// Drafts of several tokens in one call, caches and recurrent states beside each other, one sequence that
/// drafts and one that does not: the outputs of single steps over what was accepted.
#[test]
fn drafts_in_one_call_are_as_if_the_rest_never_was() {
    let layers: Vec<_> = layers().into_iter().enumerate().filter(|(at, _)| *at != 1).collect();
    let layers: Vec<_> = layers.into_iter().map(|(_, layer)| layer).collect();
    let tokens = |seed: u64, count: usize| -> Tensor {
        let all: Vec<Tensor> =
            (0..count).map(|at| randn(seed + at as u64, &[1, D_MODEL], DType::F64)).collect();
        Tensor::cat(&all.iter().collect::<Vec<_>>(), 0).unwrap()
    };
    let call = |pool: &mut StatePool, slots: &[Slot], x: Tensor| {
        let batch = SeqBatch::equal(slots.len(), x.dims()[0] / slots.len()).unwrap();
        layers.iter().enumerate().fold(x, |x, (index, layer)| {
            let mut states = pool.layer(slots, index).unwrap();
            no_grad(|| layer.advance(&x, &batch, &mut states, None)).unwrap()
        })
    };
    for accepted in 0..=4usize {
        let mut pool = pool(&layers, 3);
        let [slot, plain, other] = [(); 3].map(|()| pool.reserve().unwrap());
        for place in [slot, plain, other] {
            call(&mut pool, &[place], tokens(0, 5));
            pool.advance(place, 5).unwrap();
        }
        for round in 0..3u64 {
            let seed = 100 + 10 * round;
            pool.begin_draft(slot).unwrap();
            let both = Tensor::cat(&[&tokens(seed, 4), &tokens(seed, 4)], 0).unwrap();
            let tried = call(&mut pool, &[slot, other], both).narrow(0, 0, 4).unwrap();
            pool.append_draft(slot, 4).unwrap();
            pool.commit(slot, accepted).unwrap();
            pool.advance(other, 4).unwrap();
            for at in 0..accepted {
                let y = call(&mut pool, &[plain], tokens(seed + at as u64, 1));
                assert_close("a draft's", &tried.narrow(0, at, 1).unwrap(), &y, 1e-12);
            }
            pool.advance(plain, accepted).unwrap();
            assert_eq!(pool.tokens(slot).unwrap(), pool.tokens(plain).unwrap());
        }
        // More than a draft can have is refused before anything changes.
        pool.begin_draft(slot).unwrap();
        let mut states = pool.layer(&[slot], 1).unwrap();
        let batch = SeqBatch::equal(1, 20).unwrap();
        let long = tokens(200, 20);
        let refused = no_grad(|| layers[1].advance(&long, &batch, &mut states, None));
        assert!(refused.unwrap_err().to_string().contains("draft"));
        pool.append_draft(slot, 0).unwrap();
        pool.commit(slot, 0).unwrap();
        // A prompt behind a draft, and the one that took everything in.
        let long = tokens(300, 20);
        let (a, b) = (call(&mut pool, &[slot], long.clone()), call(&mut pool, &[plain], long));
        assert_close("a prompt behind it", &a, &b, 1e-12);
        if accepted == 4 {
            let long = tokens(300, 20);
            assert_close("beside it", &call(&mut pool, &[other], long), &b, 1e-12);
        }
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

/// Several sequences in one call, of equal and of different lengths, against each by itself.
#[test]
fn sequences_together_and_alone_agree() {
    let layers = layers();
    let (mut together, mut alone) = (pool(&layers, 4), pool(&layers, 4));
    let slots: Vec<Slot> = (0..4).map(|_| together.reserve().unwrap()).collect();
    let own: Vec<Slot> = (0..4).map(|_| alone.reserve().unwrap()).collect();
    for (round, lengths) in [[20, 20, 3, 1], [1, 1, 1, 1], [5, 1, 1, 40], [1; 4]].iter().enumerate()
    {
        let batch = SeqBatch::from_lengths(lengths).unwrap();
        let x = randn(round as u64, &[batch.tokens(), D_MODEL], DType::F64);
        for (index, layer) in layers.iter().enumerate() {
            let mut states = together.layer(&slots, index).unwrap();
            let found = layer.advance(&x, &batch, &mut states, None).unwrap();
            for (sequence, &slot) in own.iter().enumerate() {
                let (start, count) = (batch.bounds()[sequence], lengths[sequence]);
                let x = x.narrow(0, start, count).unwrap();
                let single = SeqBatch::from_lengths(&[count]).unwrap();
                let mut states = alone.layer(&[slot], index).unwrap();
                let expected = layer.advance(&x, &single, &mut states, None).unwrap();
                let found = found.narrow(0, start, count).unwrap();
                // f64 sums may be split differently.
                assert_close("together", &found, &expected, 1e-12);
            }
        }
    }
}

/// Pages of released sequences are used again, and a shared last page is copied before it is written.
#[test]
fn pages_are_shared_copied_and_reused() {
    let layers = layers();
    let mut pool = pool(&layers, 3);
    let slot = pool.reserve().unwrap();
    (0..20).for_each(|token| drop(step(&layers, &mut pool, slot, token)));
    pool.advance(slot, 20).unwrap();
    let one = pool.bytes();
    let twin = pool.reserve().unwrap();
    let snapshot = pool.snapshot(slot).unwrap();
    pool.restore(twin, &snapshot).unwrap();
    let hash = pool.hash(slot).unwrap();
    let (a, b) = (step(&layers, &mut pool, slot, 77), step(&layers, &mut pool, twin, 77));
    assert_close("twins", &a, &b, 0.0);
    step(&layers, &mut pool, twin, 78);
    let third = pool.reserve().unwrap();
    pool.restore(third, &snapshot).unwrap();
    assert_eq!(pool.hash(third).unwrap(), hash, "writing did not touch the snapshot");
    for other in [twin, third] {
        pool.release(other).unwrap();
    }
    drop(snapshot);
    assert_eq!(pool.bytes(), one);
    for round in 0..50 {
        let other = pool.reserve().unwrap();
        (0..40).for_each(|token| drop(step(&layers, &mut pool, other, round * 100 + token)));
        pool.release(other).unwrap();
    }
}

/// Out as tensors and into a pool of the same layers: the same hash and the same next output.
#[test]
fn a_stored_snapshot_continues_bit_for_bit() {
    let layers = layers();
    for tokens in [0, 1, 16, 35] {
        let (mut pool, mut other) = (pool(&layers, 1), pool(&layers, 2));
        let slot = pool.reserve().unwrap();
        (0..tokens).for_each(|token| drop(step(&layers, &mut pool, slot, token)));
        pool.advance(slot, tokens as usize).unwrap();
        let snapshot = pool.snapshot(slot).unwrap();
        let stored: std::collections::BTreeMap<String, Tensor> =
            snapshot.tensors().unwrap().into_iter().collect();
        assert_eq!(
            (snapshot.kinds(), other.kinds()),
            ("kv,conv-kv,recurrent".into(), "kv,conv-kv,recurrent".into())
        );
        let read = |name: &str| Ok(stored[name].clone());
        let again = other.snapshot_from(tokens as usize, read).unwrap();
        let place = other.reserve().unwrap();
        for snapshot in [&again, &snapshot] {
            other.restore(place, snapshot).unwrap();
            assert_eq!(other.hash(place).unwrap(), pool.hash(slot).unwrap(), "{tokens} tokens");
        }
        let (a, b) = (step(&layers, &mut pool, slot, 999), step(&layers, &mut other, place, 999));
        assert_close("the next token", &a, &b, 0.0);
        let wrong = |name: &str| stored[name].to_dtype(DType::F32);
        assert!(other.snapshot_from(tokens as usize, wrong).is_err());
        assert!(other.snapshot_from(tokens as usize + 1, read).is_err());
    }
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

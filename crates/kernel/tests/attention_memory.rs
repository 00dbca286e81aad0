//! The memory of attention grows with the length of the sequences, not with its square.
//!
//! A test binary of its own: the pool and the process count all threads together.

use danaus_kernel::ops::attention::{AttentionOptions, attention};
use danaus_runtime::{memory, pool};
use danaus_tensor::{DType, backward_with};
use danaus_testkit::randn;

const HEADS: usize = 2;

/// Bytes that forward and backward take from the pool at most, inputs apart.
fn peak(length: usize) -> usize {
    let input = |seed| randn(seed, &[1, length, HEADS, 64], DType::F32);
    let (q, k, v) = (input(1).tracked(), input(2).tracked(), input(3).tracked());
    let cotangent = input(4);
    pool::reset_peak();
    let before = pool::statistics().live;
    let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
    let (out, _) = attention(&q, &k, &v, &options).unwrap();
    let gradients = backward_with(&[(&out, &cotangent)]).unwrap();
    assert!(gradients.get(&q).is_some());
    pool::statistics().peak - before
}

#[test]
fn peak_memory_is_linear_in_the_length() {
    let (short, long) = (peak(1024), peak(8192));
    // 8 times the length; 64 times the scores.
    assert!(long < 10 * short, "{short} bytes at 1024 tokens, {long} at 8192");
    let scores = HEADS * 8192 * 8192 * 4;
    assert!(long < scores / 8, "{long} bytes, a matrix of scores has {scores}");
    if let Some(resident) = memory::peak_resident_bytes() {
        assert!(resident < scores as u64 / 2, "the process took {resident} bytes");
    }
}

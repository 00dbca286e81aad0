//! Any permutation as two butterflies whose blocks are identities and swaps (a Benes network).
//!
//! The factor of stride n/2 at the input swaps positions i and i + n/2 so that both halves hold
//! each residue modulo n/2 once; that of stride n/2 at the output sends every value to its half.
//! What is left are two permutations of half the size. Which pairs to swap is a walk along cycles:
//! pairs of inputs and pairs of outputs are nodes of a graph where every node has two edges, and
//! neighbours along a cycle go to different halves. The work is n log2 n, on flat arrays.

use super::log_size;
use danaus_tensor::{Device, Error, Result, Tensor};

/// The twiddle `[1, 2, log_n, n / 2, 2, 2]` of `y = x[perm]`: decreasing strides first (the class
/// BB* of Kaleidoscope matrices), or increasing ones first (B*B) with `increasing`. Sizes that are
/// no power of two are extended by the identity.
///
/// # Errors
/// When `perm` has fewer than two elements or is no permutation.
pub fn permutation_twiddle(perm: &[usize], increasing: bool) -> Result<Tensor> {
    check(perm)?;
    let n = perm.len().next_power_of_two();
    let log_n = log_size("permutation", n)?;
    let mut perm: Vec<usize> = perm.iter().copied().chain(perm.len()..n).collect();
    let reverse = |i: usize| i.reverse_bits() >> (usize::BITS - log_n as u32);
    if increasing {
        // B*B is BB* between bit reversals.
        perm = (0..n).map(|i| reverse(perm[reverse(i)])).collect();
    }
    let swaps = route(perm, log_n);
    let half = n / 2;
    let mut values = vec![0.0f64; 2 * log_n * half * 4];
    for (factor, swaps) in swaps.iter().enumerate() {
        for (pair, &swap) in swaps.iter().enumerate() {
            let pair = if increasing { reversed_pair(pair, log_n) } else { pair };
            let block = &mut values[(factor * half + pair) * 4..][..4];
            let ones = if swap { [1, 2] } else { [0, 3] };
            ones.iter().for_each(|&place| block[place] = 1.0);
        }
    }
    Tensor::from_vec(values, [1, 2, log_n, half, 2, 2], &Device::Cpu)
}

/// Index of a pair after the bits of its positions are reversed: the pair index loses the bit of
/// the stride, so its log_n - 1 bits are reversed.
fn reversed_pair(pair: usize, log_n: usize) -> usize {
    match log_n {
        1 => pair,
        _ => pair.reverse_bits() >> (usize::BITS - (log_n as u32 - 1)),
    }
}

fn check(perm: &[usize]) -> Result<()> {
    let valid = || format!("each of 0..{} once, at least two", perm.len());
    let mut seen = vec![false; perm.len()];
    for &index in perm {
        if seen.get(index).is_none_or(|&seen| seen) {
            return Err(Error::argument(
                "permutation",
                "perm",
                format!("{index} among others"),
                valid(),
            ));
        }
        seen[index] = true;
    }
    match perm.len() < 2 {
        true => Err(Error::argument("permutation", "perm", perm.len(), valid())),
        false => Ok(()),
    }
}

/// Which pairs swap, for the factors in the order they are applied: strides n/2, .., 1, then 1, ..,
/// n/2.
fn route(perm: Vec<usize>, log_n: usize) -> Vec<Vec<bool>> {
    let n = perm.len();
    let mut swaps = vec![vec![false; n / 2]; 2 * log_n];
    // `perm` holds blocks of `size`, each a permutation of its own positions.
    let mut perm = perm;
    let mut inverse = vec![0; n];
    let mut side = vec![u8::MAX; n];
    for level in 0..log_n {
        let (size, half) = (n >> level, n >> (level + 1));
        let (head, tail) = (level, 2 * log_n - 1 - level);
        let mut next = vec![0; n];
        for start in (0..n).step_by(size) {
            let block = &perm[start..start + size];
            let inverse = &mut inverse[..size];
            block.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
            let side = &mut side[..size];
            side.fill(u8::MAX);
            color(block, inverse, half, side);
            // `side[to]` is the half that output `to` is routed through.
            let pair = |low: usize| start / 2 + low;
            for low in 0..half {
                swaps[tail][pair(low)] = side[low] == 1;
                swaps[head][pair(low)] = side[inverse[low]] == 1;
            }
            for (to, &from) in block.iter().enumerate() {
                let through = usize::from(side[to]) * half;
                next[start + through + to % half] = from % half;
            }
        }
        perm = next;
    }
    swaps
}

/// Colours outputs with 0 and 1 so that two outputs, and two inputs, half a block apart differ.
fn color(perm: &[usize], inverse: &[usize], half: usize, side: &mut [u8]) {
    let size = perm.len();
    for first in 0..half {
        let mut to = first;
        while side[to] == u8::MAX {
            side[to] = 0;
            // The other output of the pair takes the other half, and with it the input that feeds
            // it; that input's partner must take this half again.
            let other = (to + half) % size;
            side[other] = 1;
            to = inverse[(perm[other] + half) % size];
        }
    }
}

//! Copies rows of q, k, v and gradients into the layouts of the products.
//!
//! A *word* is 32 bits and advances a product by one multiply-add: one f32, or two bf16 neighbours
//! along the contraction where the processor multiplies such pairs. Buffers of words are `[f32]`
//! in both cases; a pair only travels through loads, broadcasts and stores, which keep all bits.
//! Packing also widens other types, makes rows contiguous and zeroes what lies beyond a sequence, so
//! that garbage behind the last key cannot reach a sum.

use danaus_runtime::simd::{Lane, has_bf16_dot};
use half::{bf16, f16};

/// Element types of the CPU kernels.
pub trait Element: Lane {
    /// Whether elements are words as they are.
    const IS_F32: bool;
    /// Whether pairs of elements are words as they are.
    const IS_BF16: bool;
    /// The bits as bf16 (rounded where the type is wider).
    fn bf16_bits(self) -> u32;
}

impl Element for f32 {
    const IS_F32: bool = true;
    const IS_BF16: bool = false;
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        u32::from(bf16::from_f32(self).to_bits())
    }
}

impl Element for bf16 {
    const IS_F32: bool = false;
    const IS_BF16: bool = true;
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        u32::from(self.to_bits())
    }
}

impl Element for f16 {
    const IS_F32: bool = false;
    const IS_BF16: bool = false;
    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        u32::from(bf16::from_f32(self.to_f32()).to_bits())
    }
}

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// One f32.
    F32,
    /// Two bf16, the first in the low half.
    Bf16Pairs,
}

impl Words {
    /// The words of an element type on this processor.
    pub fn of<T: Element>() -> Self {
        if T::IS_BF16 && has_bf16_dot() { Words::Bf16Pairs } else { Words::F32 }
    }

    /// Contraction steps of a word.
    pub fn step(self) -> usize {
        match self {
            Words::F32 => 1,
            Words::Bf16Pairs => 2,
        }
    }

    /// Words that hold `n` steps.
    pub fn count(self, n: usize) -> usize {
        n.div_ceil(self.step())
    }

    fn pair<T: Element>(low: T, high: T) -> f32 {
        f32::from_bits(low.bf16_bits() | (high.bf16_bits() << 16))
    }

    /// `rows` one after the other, pairs along the features: `out[r][word of feature]`.
    pub fn natural<'a, T: Element>(self, rows: impl Iterator<Item = &'a [T]>, out: &mut [f32]) {
        let mut start = 0;
        for row in rows {
            let to = &mut out[start..start + self.count(row.len())];
            match self {
                Words::F32 => to.iter_mut().zip(row).for_each(|(to, x)| *to = x.widen()),
                Words::Bf16Pairs => {
                    let pairs = row.chunks_exact(2);
                    if let ([last], Some(to)) = (pairs.remainder(), to.last_mut()) {
                        *to = Self::pair(*last, T::default());
                    }
                    to.iter_mut().zip(pairs).for_each(|(to, x)| *to = Self::pair(x[0], x[1]));
                }
            }
            start += to.len();
        }
    }

    /// Rows as the streamed operand of a sum over rows, pairs along the rows:
    /// `out[word of row][feature]` with rows `stride` words apart, zero beyond the row's length.
    pub fn paired<'a, T: Element>(
        self,
        mut rows: impl Iterator<Item = &'a [T]>,
        out: &mut [f32],
        stride: usize,
    ) {
        for to in out.chunks_exact_mut(stride) {
            let Some(first) = rows.next() else { break };
            let width = first.len();
            match self {
                Words::F32 => to.iter_mut().zip(first).for_each(|(to, x)| *to = x.widen()),
                Words::Bf16Pairs => match rows.next() {
                    Some(second) => {
                        let pairs = first.iter().zip(second);
                        to.iter_mut().zip(pairs).for_each(|(to, (a, b))| *to = Self::pair(*a, *b));
                    }
                    None => to
                        .iter_mut()
                        .zip(first)
                        .for_each(|(to, a)| *to = Self::pair(*a, T::default())),
                },
            }
            to[width..].fill(0.0);
        }
    }

    /// Rows of a panel as `lanes` lanes, pairs along the features: `out[word of feature][lane]`, zero
    /// for lanes without a row.
    pub fn transposed<'a, T: Element>(
        self,
        rows: impl Iterator<Item = &'a [T]>,
        width: usize,
        out: &mut [f32],
        lanes: usize,
    ) {
        out[..self.count(width) * lanes].fill(0.0);
        for (lane, row) in rows.enumerate() {
            match self {
                Words::F32 => {
                    for (feature, x) in row.iter().enumerate() {
                        out[feature * lanes + lane] = x.widen();
                    }
                }
                Words::Bf16Pairs => {
                    for (word, pair) in row.chunks(2).enumerate() {
                        let high = pair.get(1).copied().unwrap_or_default();
                        out[word * lanes + lane] = Self::pair(pair[0], high);
                    }
                }
            }
        }
    }
}

/// Hints that a row is read soon; does nothing where there is no such instruction.
#[inline]
pub fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(row)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the address lies in the row, and a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(row.as_ptr().cast::<i8>().add(offset)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

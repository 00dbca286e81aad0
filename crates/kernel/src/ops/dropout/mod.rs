//! Dropout (Srivastava et al. 2014) with a mask that is computed, never stored.
//!
//! Element i is kept when `bits(seed, stream, i) >= round(p 2^32)`, where `bits` is Philox4x32-10
//! (see `danaus_runtime::philox`), and is then divided by 1 - p. The gradient applies the same mask
//! to the cotangent. A dropped element is 0 whatever it was, NaN and infinity too.

pub mod cpu;
pub mod reference;

#[cfg(test)]
mod tests;

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, 0 to 1.
    pub p: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Which mask of this seed: one for each layer and step.
    pub stream: u64,
}

impl Dropout {
    /// Random words below this are dropped.
    pub(crate) fn threshold(&self) -> u64 {
        (self.p * (1u64 << 32) as f64).round() as u64
    }

    /// Factor of the elements that are kept; 0 when none is.
    pub(crate) fn scale(&self) -> f64 {
        if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 }
    }
}

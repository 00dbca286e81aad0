//! Rotary angles of a model: frequencies, their scaling for long contexts, and the tables.
//!
//! Pair i of a head turns by `position * f_i` with `f_i = theta^(-2 i / rotary_dim)`, then scaled:
//!
//! | kind | frequency |
//! | --- | --- |
//! | `linear` | `f / factor` (Chen et al. 2023, position interpolation) |
//! | `factors` | each divided by its own number |
//! | `llama3` | with the wavelength `L = 2 pi / f` and the context `C` of pretraining: `f` for `L < C / high_freq_factor`, `f / factor` for `L > C / low_freq_factor`, between them `f ((1 - s) / factor + s)`, `s = (C / L - low) / (high - low)` |
//!
//! Frequencies and angles are f64, tables f32 (a frequency rounded to bf16 shifts logits by 1e-2). The
//! tables are shared by all layers and grow as sequences do, because a model that may see 128 Ki
//! positions would spend more time on its tables than on reading its weights.

use super::AttentionConfig;
use danaus_kernel::ops::rotary::{Positions, rotary, tables_from};
use danaus_kernel::recording::hold;
use danaus_tensor::{Device, Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use std::sync::{Mutex, PoisonError};

/// Rows that a new table has at least.
const FIRST_ROWS: usize = 1024;

/// How the angles are stretched beyond the context of pretraining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum RopeScaling {
    /// All frequencies divided.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Each frequency divided by its own number.
    Factors {
        /// One divisor a pair.
        factors: Vec<f64>,
    },
    /// Low frequencies divided, high ones kept.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Turns within the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns from which on it is high.
        high_freq_factor: f64,
        /// The context of pretraining.
        original_max_positions: usize,
    },
}

impl RopeScaling {
    /// Refuses values that give no frequencies for `pairs` pairs.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, pairs: usize) -> Result<()> {
        let refuse = |field: &str, given: f64, valid: &str| {
            let field = format!("attention.rope_scaling.{field}");
            Err(Error::argument("config", field, given, valid))
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match *self {
            Self::Factors { ref factors } if factors.len() != pairs => {
                refuse("factors", factors.len() as f64, &format!("{pairs} of them"))
            }
            Self::Factors { ref factors } => {
                let bad = factors.iter().find(|&&factor| !positive(factor));
                bad.map_or(Ok(()), |&factor| refuse("factors", factor, "above 0"))
            }
            Self::Linear { factor } | Self::Llama3 { factor, .. } if !positive(factor) => {
                refuse("factor", factor, "above 0")
            }
            Self::Llama3 { low_freq_factor: low, .. } if !positive(low) => {
                refuse("low_freq_factor", low, "above 0")
            }
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. }
                if !positive(high) || high <= low =>
            {
                refuse("high_freq_factor", high, "above low_freq_factor")
            }
            Self::Llama3 { original_max_positions: 0, .. } => {
                refuse("original_max_positions", 0.0, "at least 1")
            }
            _ => Ok(()),
        }
    }

    /// What the frequency of each pair is divided by, for files that keep the outcome and not the rule.
    pub fn factors(&self, theta: f64, rotary_dim: usize) -> Vec<f64> {
        let divisor = |pair: usize| {
            let plain = theta.powf(-2.0 * pair as f64 / rotary_dim as f64);
            plain / self.apply(pair, plain)
        };
        (0..rotary_dim / 2).map(divisor).collect()
    }

    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match *self {
            Self::Factors { ref factors } => frequency / factors.get(pair).unwrap_or(&1.0),
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions,
            } => {
                let turns = original_max_positions as f64 * frequency / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * ((1.0 - share) / factor + share)
            }
        }
    }
}

/// The rotation of a model's heads, shared by its layers.
pub struct Rope {
    frequencies: Vec<f64>,
    interleaved: bool,
    max_positions: usize,
    tables: Mutex<Option<(Tensor, Tensor)>>,
}

impl Rope {
    /// The rotation of a checked config, if it has one.
    pub fn new(config: &AttentionConfig, d_model: usize, max_positions: usize) -> Option<Self> {
        let theta = config.rope_theta?;
        let dim = config.rotary_dim.unwrap_or_else(|| config.dim(d_model));
        let frequency = |pair: usize| {
            let plain = theta.powf(-2.0 * pair as f64 / dim as f64);
            config.rope_scaling.as_ref().map_or(plain, |scaling| scaling.apply(pair, plain))
        };
        Some(Self {
            frequencies: (0..dim / 2).map(frequency).collect(),
            interleaved: config.rope_interleaved,
            max_positions,
            tables: Mutex::new(None),
        })
    }

    /// Cosines and sines for at least `positions` positions; a row does not depend on how many there are.
    fn tables(&self, positions: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        // The tables are replaced as a whole, so a panic elsewhere leaves valid ones.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tables {
            Some((cos, sin)) if cos.dims()[0] >= positions && cos.device() == *device => {
                Ok((cos.clone(), sin.clone()))
            }
            _ => {
                let rows = positions.max(FIRST_ROWS).next_power_of_two().min(self.max_positions);
                let (cos, sin) = tables_from(rows.max(positions), &self.frequencies)?;
                let made = (cos.to_device(device)?, sin.to_device(device)?);
                Ok(tables.insert(made).clone())
            }
        }
    }

    /// Turns the heads of `x`; `positions` are all below `end`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn rotate(&self, x: &Tensor, positions: Positions, end: usize) -> Result<Tensor> {
        let (cos, sin) = self.tables(end, &x.device())?;
        // Another text may need longer tables, which replace these.
        [&cos, &sin].into_iter().for_each(hold);
        rotary(x, (&cos, &sin), positions, self.interleaved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope_scaling: Option<RopeScaling>) -> AttentionConfig {
        let rope_theta = Some(10_000.0);
        AttentionConfig { n_heads: 1, rope_theta, rope_scaling, ..AttentionConfig::default() }
    }

    #[test]
    fn llama3_divides_low_frequencies_and_keeps_high_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let plain = Rope::new(&config(None), 128, 64).unwrap().frequencies;
        let scaled = Rope::new(&config(Some(scaling)), 128, 64).unwrap().frequencies;
        for (plain, scaled) in plain.iter().zip(&scaled) {
            // The published rule, by wavelength.
            let wavelength = TAU / plain;
            let expected = if wavelength < 8192.0 / 4.0 {
                *plain
            } else if wavelength > 8192.0 {
                plain / 8.0
            } else {
                let s = (8192.0 / wavelength - 1.0) / 3.0;
                plain * ((1.0 - s) / 8.0 + s)
            };
            assert!((scaled / expected - 1.0).abs() < 1e-14, "{plain}: {scaled} {expected}");
        }
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
    }

    #[test]
    fn growing_tables_keeps_rows() {
        let rope = Rope::new(&config(Some(RopeScaling::Linear { factor: 3.0 })), 8, 5000).unwrap();
        let (short, _) = rope.tables(7, &Device::Cpu).unwrap();
        let (long, _) = rope.tables(4999, &Device::Cpu).unwrap();
        assert_eq!((short.dims()[0], long.dims()[0]), (1024, 5000));
        let same = long.narrow(0, 0, 1024).unwrap();
        assert_eq!(short.to_vec::<f32>().unwrap(), same.to_vec::<f32>().unwrap());
    }
}

//! Settings of a training run.

use crate::optim::OptimizerConfig;
use crate::schedule::Schedule;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// At the end of the run alone.
    End,
    /// After every so many updates.
    Steps(u64),
    /// After every so many seconds.
    Seconds(f64),
}

impl Every {
    fn validate(self, field: &str) -> Result<()> {
        match self {
            Self::Steps(0) => Err(Error::config(field, "0 steps", "at least 1 step")),
            Self::Seconds(s) if s.is_nan() || s < 0.0 => {
                Err(Error::config(field, format!("{s} seconds"), "at least 0 seconds"))
            }
            _ => Ok(()),
        }
    }
}

/// When a rising loss ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Divergence {
    /// Too high is a loss above this many times the best smoothed loss.
    pub factor: f64,
    /// For so many steps in a row.
    pub patience: u64,
}

impl Default for Divergence {
    fn default() -> Self {
        Self { factor: 2.0, patience: 50 }
    }
}

/// Settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates to make; `None` for no limit.
    pub steps: Option<u64>,
    /// Minutes to train, with validation and checkpoints; `None` for no limit. Where this is the only
    /// limit, the schedule follows the clock, so two runs do not have the same bits.
    pub minutes: Option<f64>,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Learning-rate schedule.
    pub schedule: Schedule,
    /// Micro-batches per update.
    pub micro_batches: u64,
    /// Largest global norm of the gradient; `None` leaves it as it is.
    pub clip_norm: Option<f64>,
    /// Seed of everything random.
    pub seed: u64,
    /// How often held-out loss and samples are computed.
    pub validate: Every,
    /// How often a checkpoint is written.
    pub checkpoint: Every,
    /// Checkpoints to keep.
    pub keep: usize,
    /// When a rising loss ends the run; `None` for never.
    pub divergence: Option<Divergence>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: Some(1000),
            minutes: None,
            optimizer: OptimizerConfig::default(),
            schedule: Schedule::default(),
            micro_batches: 1,
            clip_norm: Some(1.0),
            seed: 0,
            validate: Every::Steps(200),
            checkpoint: Every::Steps(200),
            keep: 3,
            divergence: Some(Divergence::default()),
        }
    }
}

impl TrainConfig {
    /// Refuses values that have no meaning.
    ///
    /// # Errors
    /// Naming the setting and its range.
    pub fn validate(&self) -> Result<()> {
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.validate.validate("validate")?;
        self.checkpoint.validate("checkpoint")?;
        let check = |field: &str, value: Option<f64>, valid: &str| match value {
            Some(value) if value.is_nan() || value <= 0.0 => {
                Err(Error::config(field, value, valid))
            }
            _ => Ok(()),
        };
        check("minutes", self.minutes, "above 0")?;
        check("clip_norm", self.clip_norm, "above 0")?;
        check("divergence.factor", self.divergence.map(|d| d.factor - 1.0), "above 1")?;
        let counts = [("micro_batches", self.micro_batches), ("keep", self.keep as u64)];
        if let Some((field, value)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::config(field, value, "at least 1"));
        }
        if self.micro_batches >= 1 << 16 {
            return Err(Error::config("micro_batches", self.micro_batches, "below 65536"));
        }
        if self.steps.is_none() && self.minutes.is_none() {
            return Err(Error::config("steps", "unlimited", "a limit by steps or by minutes"));
        }
        Ok(())
    }
}

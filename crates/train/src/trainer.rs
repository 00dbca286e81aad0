//! The training loop, to be read from top to bottom: data, forward, loss, backward, clip, update, log,
//! validate, save.

use crate::checkpoint::{self, BUILD, Counters, Manifest, Store, VERSION};
use crate::config::{Every, TrainConfig};
use crate::guard;
use crate::metrics::{Line, Metrics};
use crate::optim::{GradientSet, Optimizer, global_norm};
use crate::progress::{Ending, Observer, Plan, Progress, Summary};
use crate::task::{Moment, Sample, Task};
use crate::{Error, Result};
use danaus_tensor::{Device, Tensor, backward_with, no_grad};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new run; refused where the folder holds checkpoints already.
    New,
    /// From the newest checkpoint; refused where there is none.
    Resume,
    /// From the newest checkpoint if there is one.
    ResumeOrNew,
}

/// A run: a task, its optimiser and the folder that it writes to.
pub struct Trainer<'a, T: Task> {
    task: &'a mut T,
    config: TrainConfig,
    optimizer: Optimizer,
    counters: Counters,
    run: PathBuf,
    store: Store,
    metrics: Metrics,
    plan: Plan,
    /// The newest complete checkpoint, and its step.
    last: Option<PathBuf>,
    last_step: Option<u64>,
    samples: Vec<Sample>,
    /// Targets and the bytes of text they stand for, in this part of the run.
    targets: u64,
    bytes: u64,
    /// A checkpoint is due and waits for a loss that is not far above its best.
    save_is_due: bool,
    /// Start of this part of the run, set back by the seconds of earlier parts.
    clock: Clock,
}

/// What the updates of one step yielded.
struct Update {
    gradients: GradientSet,
    loss: f64,
    tokens: u64,
    grad_scale: f64,
}

impl<'a, T: Task> Trainer<'a, T> {
    /// Prepares a run in the folder `run`: checks settings and memory, restores a checkpoint.
    ///
    /// # Errors
    /// Invalid settings, too little memory, a folder that cannot be written, a checkpoint that does
    /// not fit.
    pub fn new(task: &'a mut T, config: TrainConfig, run: &Path, start: Start) -> Result<Self> {
        config.validate()?;
        let memory = guard::memory_terms(task, &config);
        let device = task.params().iter().next().map_or(Device::Cpu, |p| p.tensor().device());
        let memory_available = guard::available_memory(&device)?;
        guard::check_memory(&memory, memory_available)?;
        let last = check_folder(run, start)?;
        let store = Store::new(run);

        let mut optimizer = Optimizer::new(config.optimizer.clone(), task.params())?;
        let counters = match &last {
            Some(folder) => checkpoint::restore(folder, task, &mut optimizer, &config)?.counters,
            None => Counters::default(),
        };
        let metrics = Metrics::open(run, counters.step)?;
        let plan = Plan {
            parameters: task.params().elem_count() as u64,
            first_step: counters.step,
            memory,
            memory_available,
        };
        let (run, last_step) = (run.to_path_buf(), last.as_ref().map(|_| counters.step));
        let (samples, clock) = (Vec::new(), Clock::new(counters.seconds));
        Ok(Self {
            task,
            config,
            optimizer,
            counters,
            run,
            store,
            metrics,
            plan,
            last,
            last_step,
            samples,
            targets: 0,
            bytes: 0,
            save_is_due: false,
            clock,
        })
    }

    /// Trains until a limit is reached or `stop` is set, and leaves a checkpoint.
    ///
    /// # Errors
    /// A loss or gradient that is no number, divergence, a checkpoint that cannot be written, and
    /// whatever the task reports. The last good checkpoint stays.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Summary> {
        self.clock = Clock::new(self.counters.seconds);
        observer.started(&self.plan);
        loop {
            if let Some(ending) = self.ending(stop) {
                return self.finish(ending, observer);
            }
            if !self.one_step(observer)? {
                return self.finish(Ending::Data, observer);
            }
        }
    }

    /// One update and what follows it; `false` where the data is used up.
    fn one_step(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let begun = Instant::now();
        let Some(Update { gradients, loss, tokens, grad_scale }) = self.forward_backward()? else {
            return Ok(false);
        };
        let (grad_norm, grad_scale) = self.clip(&gradients, grad_scale)?;
        let lr_factor = self.config.schedule.factor(self.counters.step, self.total_steps());
        self.optimizer.step(&gradients, grad_scale, lr_factor)?;
        drop(gradients);

        self.counters.step += 1;
        self.counters.tokens += tokens;
        self.counters.seconds = self.clock.seconds();
        let step = self.counters.step;
        let divergence = self.config.divergence;
        let followed = guard::follow_loss(&mut self.counters, loss, divergence, &self.last);
        let tokens_per_s = tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        let lr = self.config.optimizer.lr() * lr_factor;
        let progress = self.progress(loss, lr, grad_norm, tokens_per_s);
        observer.stepped(&progress);
        self.log(&progress)?;
        followed?;

        if self.clock.validation.is_due(self.config.validate, step) {
            self.validate(observer)?;
        }
        // Checkpoints are good ones: while the loss is far above its best, which may be the beginning of
        // a divergence, a due checkpoint waits, so that none replaces the last good one.
        self.save_is_due |= self.clock.checkpoint.is_due(self.config.checkpoint, step);
        if self.save_is_due && self.counters.steps_above == 0 {
            self.save(observer)?;
        }
        Ok(true)
    }

    /// Data, forward, loss and backward of all micro-batches of one update.
    ///
    /// With mean losses `l_i` over `n_i` targets, the gradient is that of `sum n_i l_i / sum n_i`: the
    /// mean over all targets, however they fall into micro-batches.
    fn forward_backward(&mut self) -> Result<Option<Update>> {
        let mut gradients = GradientSet::default();
        let (mut losses, mut targets, mut tokens) = (Vec::new(), 0u64, 0);
        let mut first_targets = None;
        for micro_batch in 0..self.config.micro_batches {
            let moment = Moment { seed: self.config.seed, step: self.counters.step, micro_batch };
            let Some(batch) = self.task.next_batch()? else { return Ok(None) };
            let loss = self.task.loss(&batch, moment)?;
            // Weights relative to the first micro-batch: exactly 1 where there is only one.
            let unit = *first_targets.get_or_insert(loss.targets.max(1)) as f64;
            let weight =
                Tensor::full(loss.targets as f64 / unit, loss.mean.shape(), &loss.mean.device())?;
            gradients.add(self.task.params(), backward_with(&[(&loss.mean, &weight)])?)?;
            losses.push((loss.mean.detach(), loss.targets as f64));
            targets += loss.targets;
            tokens += loss.tokens;
            self.bytes += loss.bytes;
        }
        // Read when everything is on its way: reading waits for the device.
        let mut weighted_loss = 0.0;
        for (mean, targets) in losses {
            let value = mean.to_scalar()?;
            guard::check_finite("loss", value, self.counters.step + 1, &self.last)?;
            weighted_loss += value * targets;
        }
        self.targets += targets;
        let all = targets.max(1) as f64;
        let grad_scale = first_targets.unwrap_or(1) as f64 / all;
        Ok(Some(Update { gradients, loss: weighted_loss / all, tokens, grad_scale }))
    }

    /// Norm of the gradient, and the factor that brings it below the limit.
    fn clip(&self, gradients: &GradientSet, grad_scale: f64) -> Result<(f64, f64)> {
        let norm = global_norm(gradients)? * grad_scale;
        guard::check_finite("gradient norm", norm, self.counters.step + 1, &self.last)?;
        let factor = match self.config.clip_norm {
            Some(limit) if norm > limit => limit / norm,
            _ => 1.0,
        };
        Ok((norm, grad_scale * factor))
    }

    /// Held-out loss and samples.
    fn validate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let (validation, samples) =
            no_grad(|| Ok::<_, Error>((self.task.validate()?, self.task.samples()?)))?;
        self.counters.seconds = self.clock.seconds();
        self.samples = samples;
        if let Some(validation) = validation {
            let step = self.counters.step;
            guard::check_finite("held-out loss", validation.loss, step, &self.last)?;
            observer.validated(step, &validation, &self.samples);
            self.append(&Line {
                step,
                tokens: self.counters.tokens,
                seconds: self.counters.seconds,
                val_loss: Some(validation.loss),
                val_bits_per_byte: validation.bits_per_byte,
                peak_memory: danaus_runtime::memory::peak_resident_bytes(),
                ..Line::default()
            })?;
            self.counters.validation = Some(validation);
        }
        self.clock.validation.done(self.counters.step);
        Ok(())
    }

    /// Writes a checkpoint of the current step.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf> {
        let step = self.counters.step;
        if let (Some(folder), true) = (&self.last, self.last_step == Some(step)) {
            return Ok(folder.clone());
        }
        guard::check_weights(self.task.params(), step, &self.last)?;
        let manifest = Manifest {
            version: VERSION,
            build: BUILD.to_string(),
            counters: self.counters.clone(),
            config: self.config.clone(),
            identity: self.task.identity()?,
            cursor: self.task.cursor()?,
        };
        let (task, optimizer) = (&*self.task, &self.optimizer);
        let fill = |folder: &Path| checkpoint::write(folder, task, optimizer, &manifest);
        let saved = self.store.save(step, self.config.keep, fill);
        let folder = saved.map_err(|source| self.stopped("the checkpoint", source))?;
        self.last = Some(folder.clone());
        self.last_step = Some(step);
        self.save_is_due = false;
        self.clock.checkpoint.done(step);
        observer.saved(step, &folder);
        Ok(folder)
    }

    /// Last validation and checkpoint, and the summary. Someone who interrupts does not want to wait
    /// for a validation pass.
    fn finish(&mut self, ending: Ending, observer: &mut dyn Observer) -> Result<Summary> {
        if ending != Ending::Interrupted && self.clock.validation.last_step != self.counters.step {
            self.validate(observer)?;
        }
        let checkpoint = self.save(observer)?;
        Ok(Summary {
            ending,
            step: self.counters.step,
            tokens: self.counters.tokens,
            seconds: self.counters.seconds,
            loss: self.counters.smooth_loss.unwrap_or(f64::NAN),
            validation: self.counters.validation.clone(),
            samples: self.samples.clone(),
            checkpoint,
        })
    }

    /// Writes the weights as a model folder (`RUN/model`), replaced in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn export(&self) -> Result<PathBuf> {
        let folder = self.run.join("model");
        checkpoint::export(&folder, &*self.task)?;
        Ok(folder)
    }

    fn ending(&self, stop: &AtomicBool) -> Option<Ending> {
        if stop.load(Ordering::Relaxed) {
            return Some(Ending::Interrupted);
        }
        if self.config.steps.is_some_and(|steps| self.counters.step >= steps) {
            return Some(Ending::Steps);
        }
        let time_up = |minutes: f64| self.clock.seconds() >= 60.0 * minutes;
        self.config.minutes.is_some_and(time_up).then_some(Ending::Time)
    }

    /// Steps of the whole run: given, or expected from the speed so far.
    fn total_steps(&self) -> f64 {
        match (self.config.steps, self.config.minutes) {
            (Some(steps), _) => steps as f64,
            (None, Some(minutes)) => {
                let seconds = self.clock.seconds().max(1e-3);
                self.counters.step as f64 * 60.0 * minutes / seconds
            }
            (None, None) => f64::INFINITY,
        }
    }

    fn progress(&self, loss: f64, lr: f64, grad_norm: f64, tokens_per_s: f64) -> Progress {
        let seconds = self.counters.seconds;
        let step = self.counters.step;
        let by_steps = self.config.steps.map_or(0.0, |steps| step as f64 / steps as f64);
        let by_time = self.config.minutes.map_or(0.0, |minutes| seconds / (60.0 * minutes));
        let fraction = by_steps.max(by_time).min(1.0);
        let smooth_loss = self.counters.smooth_loss.unwrap_or(loss);
        let per_byte = self.targets as f64 / self.bytes as f64;
        let bits = (self.bytes > 0).then(|| smooth_loss * per_byte / std::f64::consts::LN_2);
        Progress {
            step,
            total_steps: self.total_steps(),
            fraction,
            loss,
            smooth_loss,
            bits_per_byte: bits,
            lr,
            grad_norm,
            tokens: self.counters.tokens,
            tokens_per_s,
            seconds,
            eta_seconds: seconds * (1.0 - fraction) / fraction.max(1e-9),
        }
    }

    fn log(&mut self, progress: &Progress) -> Result<()> {
        self.append(&Line {
            step: progress.step,
            loss: Some(progress.loss),
            lr: Some(progress.lr),
            grad_norm: Some(progress.grad_norm),
            tokens: progress.tokens,
            tokens_per_s: Some(progress.tokens_per_s),
            seconds: progress.seconds,
            ..Line::default()
        })
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        self.metrics.append(line).map_err(|source| self.stopped("the metrics", source))
    }

    /// A write that failed, with the place from which the run can go on.
    fn stopped(&self, what: &'static str, source: Error) -> Error {
        let (source, last) = (Box::new(source), self.last.clone());
        Error::Save { step: self.counters.step, what, source, last }
    }
}

/// Makes the folder of a run, and finds the checkpoint to go on from.
///
/// # Errors
/// A folder that cannot be made, or one whose checkpoints do not go with `start`.
pub fn check_folder(run: &Path, start: Start) -> Result<Option<PathBuf>> {
    std::fs::create_dir_all(run).map_err(Error::io(run))?;
    let (last, given) = (Store::new(run).latest()?, run.display());
    match (start, &last) {
        (Start::New, Some(_)) => {
            let valid = "an empty folder, or resuming the run in it";
            Err(Error::config("output folder", format!("{given} with checkpoints"), valid))
        }
        (Start::Resume, None) => {
            let valid = "a folder with a complete checkpoint";
            Err(Error::config("run to resume", format!("{given} without checkpoints"), valid))
        }
        _ => Ok(last),
    }
}

/// Time of the run and of what happens from time to time.
struct Clock {
    begun: Instant,
    before: f64,
    validation: Alarm,
    checkpoint: Alarm,
}

impl Clock {
    fn new(before: f64) -> Self {
        let alarm = || Alarm { last_step: 0, last: Instant::now() };
        Self { begun: Instant::now(), before, validation: alarm(), checkpoint: alarm() }
    }

    fn seconds(&self) -> f64 {
        self.before + self.begun.elapsed().as_secs_f64()
    }
}

/// When something happened last.
struct Alarm {
    last_step: u64,
    last: Instant,
}

impl Alarm {
    fn is_due(&self, every: Every, step: u64) -> bool {
        match every {
            Every::End => false,
            // By the step itself, so that a resumed run keeps the rhythm.
            Every::Steps(steps) => step.is_multiple_of(steps),
            Every::Seconds(seconds) => self.last.elapsed().as_secs_f64() >= seconds,
        }
    }

    fn done(&mut self, step: u64) {
        self.last_step = step;
        self.last = Instant::now();
    }
}

#[cfg(test)]
mod tests;

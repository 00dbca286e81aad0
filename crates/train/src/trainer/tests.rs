//! Whole runs of a toy task: resuming, stopping, and what must not get lost.

use super::*;
use crate::config::Divergence;
use crate::metrics;
use crate::optim::OptimizerConfig;
use crate::schedule::Schedule;
use crate::toy::Toy;

fn config(optimizer: &str, steps: u64) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        optimizer: OptimizerConfig::named(optimizer).unwrap(),
        schedule: Schedule { warmup_steps: 5, ..Schedule::default() },
        micro_batches: 3,
        clip_norm: Some(0.5),
        validate: Every::Steps(5),
        checkpoint: Every::Steps(5),
        ..TrainConfig::default()
    }
}

fn train(toy: &mut Toy, config: TrainConfig, run: &Path, start: Start) -> Result<Summary> {
    Trainer::new(toy, config, run, start)?.run(&mut (), &AtomicBool::new(false))
}

/// Everything but times.
fn lines(run: &Path) -> Vec<Line> {
    let timeless =
        |line: Line| Line { tokens_per_s: None, seconds: 0.0, peak_memory: None, ..line };
    metrics::read(&run.join(metrics::FILE_NAME)).unwrap().into_iter().map(timeless).collect()
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    for optimizer in OptimizerConfig::NAMES {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut one = Toy::new(1);
        let first = train(&mut one, config(optimizer, 20), whole.path(), Start::New).unwrap();

        // Stops at step 13 between checkpoints, as a kill would: step 13 is never saved.
        let mut two = Toy::new(1);
        let mut trainer =
            Trainer::new(&mut two, config(optimizer, 20), parts.path(), Start::New).unwrap();
        while trainer.counters.step < 13 {
            let step = trainer.counters.step;
            trainer.one_step(&mut ()).unwrap();
            assert_eq!(trainer.counters.step, step + 1);
        }
        drop(trainer);
        // Another process: other initial weights must not matter.
        let mut three = Toy::new(99);
        let mut trainer =
            Trainer::new(&mut three, config(optimizer, 20), parts.path(), Start::Resume).unwrap();
        assert_eq!(trainer.counters.step, 10);
        let second = trainer.run(&mut (), &AtomicBool::new(false)).unwrap();

        assert_eq!(first.ending, Ending::Steps);
        assert_eq!(first.loss.to_bits(), second.loss.to_bits(), "{optimizer}");
        assert_eq!(first.validation, second.validation, "{optimizer}");
        assert!(one.weights() == three.weights(), "{optimizer}");
        assert_eq!(lines(whole.path()), lines(parts.path()), "{optimizer}");
        let losses: Vec<f64> =
            lines(whole.path()).iter().filter_map(|line| line.val_loss).collect();
        assert!(losses.last() < losses.first(), "{optimizer}: {losses:?}");
    }
}

/// One update of three unequal micro-batches equals one with all their rows.
#[test]
fn micro_batches_are_averaged_by_their_targets() {
    use danaus_tensor::{Device, Init, ParamBuilder};
    let builder = ParamBuilder::init(0, danaus_tensor::DType::F64, Device::Cpu);
    let w = builder.param("w", [1], Init::Constant(3.0)).unwrap();
    let params = builder.params();
    let mean = |data: &[f64]| {
        let x = Tensor::from_slice(data, [data.len()], &Device::Cpu).unwrap();
        let count = data.len() as f64;
        x.mul(&w.tensor()).unwrap().sum_all().unwrap().affine(1.0 / count, 0.0).unwrap()
    };
    let parts: [&[f64]; 3] = [&[1.0, 2.0], &[5.0], &[3.0, 7.0, 4.0]];
    let mut set = GradientSet::default();
    for part in parts {
        let loss = mean(part);
        let weight = Tensor::full(part.len() as f64 / 2.0, [], &Device::Cpu).unwrap();
        set.add(&params, backward_with(&[(&loss, &weight)]).unwrap()).unwrap();
    }
    let found = set.get(0).unwrap().to_vec::<f64>().unwrap()[0] * 2.0 / 6.0;
    assert!((found - 22.0 / 6.0).abs() < 1e-15, "{found}");
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_weights() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::new(1);
    toy.broken_from = Some(3 * 12);
    let error = train(&mut toy, config("adamw", 20), run.path(), Start::New).unwrap_err();
    let kept = run.path().join("checkpoints/step-10");
    assert!(matches!(&error, Error::NotFinite { step: 13, last: Some(last), .. } if *last == kept));
    let text = error.to_string();
    assert!(text.contains("the loss is NaN") && text.contains("step-10"), "{text}");
    assert!(toy.weights().iter().flatten().all(|weight| weight.is_finite()));
    assert_eq!(Store::new(run.path()).latest().unwrap(), Some(kept));
}

#[test]
fn divergence_stops_with_the_last_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::new(1);
    toy.high_from = Some(3 * 12);
    let divergence = Some(Divergence { factor: 4.0, patience: 3 });
    let config = TrainConfig { divergence, ..config("sgd", 20) };
    let error = train(&mut toy, config, run.path(), Start::New).unwrap_err();
    assert!(matches!(&error, Error::Diverged { step: 15, .. }), "{error}");
    assert!(error.to_string().contains("step-10"), "{error}");
}

/// With one checkpoint kept and one written after every step, none is written while the loss is high.
#[test]
fn checkpoints_wait_while_the_loss_is_high() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::new(1);
    toy.high_from = Some(3 * 12);
    let divergence = Some(Divergence { factor: 4.0, patience: 3 });
    let often = TrainConfig { checkpoint: Every::Steps(1), keep: 1, ..config("sgd", 20) };
    let often = TrainConfig { divergence, ..often };
    let error = train(&mut toy, often, run.path(), Start::New).unwrap_err();
    assert!(error.to_string().contains("step-12"), "{error}");
    let kept = run.path().join("checkpoints/step-12");
    assert_eq!(Store::new(run.path()).latest().unwrap(), Some(kept));
}

/// An update may leave weights that are no numbers although loss and gradient were.
#[test]
fn weights_that_are_no_numbers_are_not_saved() {
    let run = tempfile::tempdir().unwrap();
    let often = |lr| {
        let mut often = TrainConfig { checkpoint: Every::Steps(1), keep: 1, ..config("sgd", 4) };
        often.optimizer.set_lr(lr);
        often
    };
    train(&mut Toy::new(1), TrainConfig { steps: Some(2), ..often(0.1) }, run.path(), Start::New)
        .unwrap();
    let error = train(&mut Toy::new(1), often(1e300), run.path(), Start::Resume).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("step 3: the sum of a weight matrix") && text.contains("step-2"),
        "{text}"
    );
    let kept = run.path().join("checkpoints/step-2");
    assert_eq!(Store::new(run.path()).latest().unwrap(), Some(kept));
}

#[test]
fn interruption_and_end_of_data_leave_a_checkpoint() {
    struct StopAt<'a>(u64, &'a AtomicBool);
    impl Observer for StopAt<'_> {
        fn stepped(&mut self, progress: &Progress) {
            self.1.store(progress.step >= self.0, Ordering::Relaxed);
        }
    }
    let run = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let mut toy = Toy::new(1);
    let mut trainer = Trainer::new(&mut toy, config("lion", 20), run.path(), Start::New).unwrap();
    let summary = trainer.run(&mut StopAt(7, &stop), &stop).unwrap();
    assert_eq!((summary.ending, summary.step), (Ending::Interrupted, 7));
    assert!(summary.checkpoint.ends_with("step-7"));

    let mut toy = Toy::new(1);
    toy.batches = Some(3 * 9 + 1);
    let summary = train(&mut toy, config("lion", 20), run.path(), Start::ResumeOrNew).unwrap();
    assert_eq!((summary.ending, summary.step), (Ending::Data, 9));
    assert!(summary.checkpoint.ends_with("step-9"));
}

#[test]
fn time_limits_and_the_clock_schedule() {
    let run = tempfile::tempdir().unwrap();
    let limit = TrainConfig {
        steps: None,
        minutes: Some(0.3 / 60.0),
        micro_batches: 1,
        validate: Every::End,
        checkpoint: Every::End,
        ..config("adamw", 0)
    };
    let mut toy = Toy::new(1);
    let summary = train(&mut toy, limit, run.path(), Start::New).unwrap();
    assert_eq!(summary.ending, Ending::Time);
    assert!(summary.step > 5, "{} steps", summary.step);
    let rates: Vec<f64> = lines(run.path()).iter().filter_map(|line| line.lr).collect();
    // The cosine ends at a tenth of the base rate, however many steps there were.
    assert!(*rates.last().unwrap() < 0.3 * OptimizerConfig::default().lr(), "{rates:?}");
}

#[test]
fn starts_are_checked() {
    let run = tempfile::tempdir().unwrap();
    let start = |start, seed| {
        let config = TrainConfig { seed, ..config("sgd", 2) };
        train(&mut Toy::new(1), config, run.path(), start).map(|summary| summary.step)
    };
    let message = start(Start::Resume, 0).unwrap_err().to_string();
    assert!(message.contains("without checkpoints"), "{message}");
    assert_eq!(start(Start::New, 0).unwrap(), 2);
    let message = start(Start::New, 0).unwrap_err().to_string();
    assert!(message.contains("with checkpoints"), "{message}");
    let message = start(Start::Resume, 5).unwrap_err().to_string();
    assert!(message.contains("the seed is 0 in the checkpoint and 5 in this run"), "{message}");

    let bad = TrainConfig { micro_batches: 0, ..TrainConfig::default() };
    assert_eq!(bad.validate().unwrap_err().to_string(), "micro_batches is 0, valid is at least 1");
    let unknown = serde_json::from_str::<TrainConfig>(r#"{"stepz": 3}"#).unwrap_err();
    assert!(unknown.to_string().contains("unknown field `stepz`"), "{unknown}");
}

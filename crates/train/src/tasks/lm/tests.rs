//! The task with a bigram model: bits per byte from counts, resuming with prefetch and
//! fill-in-the-middle, samples.

use super::*;
use crate::optim::OptimizerConfig;
use crate::trainer::{Start, Trainer};
use crate::{Every, TrainConfig};
use danaus_kernel::ops::cross_entropy::{self, cross_entropy};
use danaus_kernel::ops::embedding::embedding;
use danaus_model::decoder::Compute;
use danaus_model::{Decoder, Model, presets};
use danaus_tensor::{DType, Device, Init, ParamBuilder};
use danaus_text::pack::PackedDocuments;
use danaus_text::tokenizer::TrainOptions;
use std::sync::atomic::AtomicBool;

/// Interrupts after so many steps.
struct StopAt<'a>(u64, &'a AtomicBool);

impl crate::Observer for StopAt<'_> {
    fn stepped(&mut self, progress: &crate::Progress) {
        self.1.store(progress.step >= self.0, std::sync::atomic::Ordering::Relaxed);
    }
}

/// `logits[t] = table[token t]`.
struct Bigram {
    params: ParamSet,
    vocab_size: usize,
}

impl Bigram {
    fn new(vocab_size: usize, seed: u64) -> Self {
        let builder = ParamBuilder::init(seed, DType::F32, Device::Cpu);
        builder.param("table", [vocab_size, vocab_size], Init::Normal(0.02)).unwrap();
        Self { params: builder.params(), vocab_size }
    }

    fn table(&self) -> Tensor {
        self.params.get("table").unwrap().tensor()
    }
}

impl LanguageModel for Bigram {
    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn config(&self) -> Result<Value> {
        Ok(serde_json::json!({ "vocab_size": self.vocab_size }))
    }

    fn loss(&self, batch: &Batch, _: Option<Moment>) -> Result<Tensor> {
        let ids: Vec<i64> = batch.tokens.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        let ids = Tensor::from_vec(ids, [count], &Device::Cpu)?;
        let targets = Tensor::from_slice(&batch.targets, [count], &Device::Cpu)?;
        let logits = embedding(&self.table(), &ids, None)?;
        Ok(cross_entropy(&logits, &targets, cross_entropy::Options::default())?.0)
    }

    fn complete(&self, request: &Completion) -> Result<Vec<u32>> {
        let table = self.table().to_vec::<f32>()?;
        let mut tokens = request.prompt.to_vec();
        for _ in 0..request.max_tokens {
            let last = *tokens.last().unwrap() as usize;
            let row = &table[last * self.vocab_size..][..self.vocab_size];
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
            if request.stop.contains(&best) {
                break;
            }
            tokens.push(best);
        }
        Ok(tokens.split_off(request.prompt.len()))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("config.json");
        std::fs::write(&path, self.config()?.to_string()).map_err(Error::io(&path))
    }

    fn activation_bytes(&self, tokens: usize) -> u64 {
        2 * 4 * (tokens * self.vocab_size) as u64
    }
}

fn documents(from: usize, count: usize) -> Vec<String> {
    let line = |i: usize| format!("let value_{} = other_{} + {};\n", i % 7, i % 5, i % 3);
    (from..from + count).map(|d| (0..4 + d % 9).map(|i| line(i + d)).collect()).collect()
}

fn task(seed: u64) -> LanguageModelling<Bigram> {
    task_of(|vocab_size| Bigram::new(vocab_size, seed))
}

fn task_of<M: LanguageModel>(model: impl FnOnce(usize) -> M) -> LanguageModelling<M> {
    let (training, held_out) = (documents(0, 40), documents(100, 5));
    let options = TrainOptions { vocab_size: 320, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&training, &options).unwrap();
    let packed = |texts: &[String]| -> Arc<dyn TokenSource> {
        Arc::new(PackedDocuments::encode(texts, &tokenizer).unwrap())
    };
    let data = LmData {
        training: packed(&training),
        held_out: Some(packed(&held_out)),
        tokenizer: tokenizer.clone(),
    };
    let model = model(tokenizer.vocab_size());
    let mut options = LmOptions::new(2, 48, 11);
    options.prompts = vec!["let value".into()];
    options.gaps = vec![("let ".into(), " = other".into())];
    options.sample_tokens = 12;
    LanguageModelling::new(model, data, options).unwrap()
}

fn config(steps: u64) -> TrainConfig {
    let mut config = TrainConfig {
        steps: Some(steps),
        checkpoint: Every::Steps(10),
        validate: Every::End,
        ..TrainConfig::default()
    };
    config.optimizer.set_lr(0.05);
    config
}

/// A table of zeros gives every token `ln(vocabulary)`; first tokens are stored.
#[test]
fn bits_per_byte_of_a_uniform_model() {
    let task = task(0);
    let table = task.model.table();
    let zeros = Tensor::zeros(table.shape(), DType::F32, &Device::Cpu).unwrap();
    task.model.params.get("table").unwrap().set(&zeros).unwrap();
    let found = task.evaluate(None).unwrap().unwrap();

    let tokenizer = &task.data.tokenizer;
    let (mut bits, mut bytes) = (0.0, 0);
    for text in documents(100, 5) {
        let tokens = tokenizer.encode_ordinary(&text).unwrap();
        // All tokens but the first, and the end of the text.
        bits += tokens.len() as f64 * (tokenizer.vocab_size() as f64).log2();
        bits += 8.0 * tokenizer.token_bytes(tokens[0]).unwrap().len() as f64;
        bytes += text.len();
    }
    let (found, expected) = (found.bits_per_byte.unwrap(), bits / bytes as f64);
    // f32 losses, averaged.
    assert!((found / expected - 1.0).abs() < 1e-6, "{found}, not {expected}");
}

#[test]
fn resumes_with_the_same_bits_and_learns() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let train = |seed, steps, run: &Path| {
        let mut task = task(seed);
        let mut trainer = Trainer::new(&mut task, config(steps), run, Start::ResumeOrNew).unwrap();
        let summary = trainer.run(&mut (), &AtomicBool::new(false)).unwrap();
        let folder = trainer.export().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            assert!(folder.join(name).is_file(), "{name}");
        }
        (summary, task.model.table().to_vec::<f32>().unwrap())
    };
    // The schedule knows the number of steps, so the first part is stopped, not shortened.
    let (first, table) = train(1, 40, whole.path());
    let stop = AtomicBool::new(false);
    let mut interrupted = task(1);
    let mut trainer = Trainer::new(&mut interrupted, config(40), parts.path(), Start::New).unwrap();
    assert_eq!(trainer.run(&mut StopAt(17, &stop), &stop).unwrap().step, 17);
    let (second, resumed) = train(2, 40, parts.path());
    assert!(table == resumed);
    assert_eq!(first.validation, second.validation);

    let bits = first.validation.unwrap().bits_per_byte.unwrap();
    assert!(bits < 3.0, "{bits} bits per byte");
    assert_eq!(first.samples.len(), 2);
    assert_eq!(first.samples, second.samples);
    assert!(!first.samples[0].output.is_empty());
}

#[test]
fn a_checkpoint_of_another_tokenizer_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let mut first = task(1);
    Trainer::new(&mut first, config(2), run.path(), Start::New)
        .unwrap()
        .run(&mut (), &AtomicBool::new(false))
        .unwrap();
    let path = run.path().join("checkpoints/step-2/training.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let digest = first.data.tokenizer.digest().to_string();
    std::fs::write(&path, text.replace(&digest, "0123")).unwrap();
    let mut second = task(1);
    let error = Trainer::new(&mut second, config(2), run.path(), Start::Resume).err().unwrap();
    assert!(error.to_string().contains("the tokenizer is 0123 in the checkpoint"), "{error}");
}

fn hybrid(seed: u64, dtype: DType) -> LanguageModelling<Decoder> {
    task_of(|vocab_size| {
        let mut config = presets::quickstart(vocab_size);
        config.d_model = 64;
        config.layers = "MA".into();
        Decoder::init(&config, seed, Compute::new(dtype)).unwrap()
    })
}

/// A hybrid decoder in f32 and bf16: interrupted and resumed has the bits of uninterrupted, and the
/// exported folder is the trained model.
#[test]
fn a_decoder_resumes_with_the_same_bits() {
    for (dtype, optimizer) in [(DType::F32, "adamw"), (DType::BF16, "muon")] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = TrainConfig {
            optimizer: OptimizerConfig::named(optimizer).unwrap(),
            micro_batches: 2,
            checkpoint: Every::Steps(5),
            ..config(12)
        };
        let weights = |task: &LanguageModelling<Decoder>| -> Vec<Vec<f32>> {
            let params = LanguageModel::params(task.model()).iter();
            params.map(|param| param.tensor().to_vec::<f32>().unwrap()).collect()
        };
        let mut one = hybrid(1, dtype);
        let mut trainer = Trainer::new(&mut one, config.clone(), whole.path(), Start::New).unwrap();
        let first = trainer.run(&mut (), &AtomicBool::new(false)).unwrap();
        let folder = trainer.export().unwrap();

        let stop = AtomicBool::new(false);
        let mut two = hybrid(1, dtype);
        let mut trainer = Trainer::new(&mut two, config.clone(), parts.path(), Start::New).unwrap();
        trainer.run(&mut StopAt(7, &stop), &stop).unwrap();
        let mut three = hybrid(5, dtype);
        let mut trainer = Trainer::new(&mut three, config, parts.path(), Start::Resume).unwrap();
        let second = trainer.run(&mut (), &AtomicBool::new(false)).unwrap();
        assert!(weights(&one) == weights(&three), "{dtype} {optimizer}");
        assert_eq!(first.validation, second.validation);
        assert_eq!(first.samples, second.samples);

        let loaded = Model::load(&folder, Compute::new(dtype)).unwrap();
        assert_eq!(loaded.tokenizer().unwrap().digest(), one.data.tokenizer.digest());
        let again = task_of(|_| loaded.decoder);
        assert_eq!(again.evaluate(None).unwrap(), first.validation);
    }
}

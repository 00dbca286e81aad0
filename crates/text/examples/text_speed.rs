//! Measures the text pipeline on the crates that cargo has unpacked, or on a given path:
//! `cargo run --release -p danaus-text --example text_speed [PATH]`.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use danaus_text::corpus::{Corpus, GatherOptions, Source, cargo_registry};
use danaus_text::loader::{Loader, LoaderOptions};
use danaus_text::pack::{PackedDocuments, TokenSource};
use danaus_text::tokenizer::{Tokenizer, TrainOptions};
use danaus_text::{baseline, shard};

fn timed<T>(what: &str, megabytes: f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {seconds:.2} s, {:.1} MB/s", megabytes / seconds);
    result
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(|path| Source::Path(path.into()));
    let source = path.or_else(cargo_registry).ok_or("no home folder; name a path")?;
    let options = GatherOptions::new(source);
    let start = Instant::now();
    let corpus = Corpus::gather(&options)?;
    println!("gather: {:.2} s, {}", start.elapsed().as_secs_f64(), corpus.report);
    let split = corpus.split(0.05, 0)?;
    let megabytes = |documents: &[danaus_text::corpus::Document]| {
        documents.iter().map(|document| document.bytes.len()).sum::<usize>() as f64 / 1e6
    };
    let (train, validation) = (megabytes(&split.train), megabytes(&split.validation));
    println!("train {train:.1} MB, validation {validation:.1} MB");

    for vocab_size in [1024, 4096] {
        let options = TrainOptions { vocab_size, ..TrainOptions::default() };
        let sampled = train.min(options.sample_bytes as f64 / 1e6);
        timed(&format!("train BPE {vocab_size}"), sampled, || {
            Tokenizer::train(&split.train, &options)
        })?;
    }
    let tokenizer = Tokenizer::train(&split.train, &TrainOptions::default())?;
    timed("encode, one thread", validation, || {
        split.validation.iter().try_for_each(|d| tokenizer.encode_bytes(&d.bytes).map(drop))
    })?;
    timed("encode by the tokenizers crate, one thread", validation, || {
        let mut texts = split.validation.iter().filter_map(|d| std::str::from_utf8(&d.bytes).ok());
        texts.try_for_each(|text| tokenizer.encode_by_library(text).map(drop))
    })?;
    let packed =
        timed("encode, all threads", train, || PackedDocuments::encode(&split.train, &tokenizer))?;
    let tokens = packed.total_tokens() as f64;
    println!("{:.2} bytes per token", train * 1e6 / tokens);
    let file = std::env::temp_dir().join(format!("text-speed-{}.tokens", std::process::id()));
    timed("write shard", train, || shard::write(&file, &packed, &tokenizer))?;
    timed("open and verify shard", train, || shard::Shard::open(&file)?.verify())?;
    std::fs::remove_file(&file)?;
    let options = LoaderOptions { epochs: Some(1), ..LoaderOptions::training(8, 512, 0) };
    let loader = Loader::new(Arc::new(packed), &tokenizer, options)?;
    let start = Instant::now();
    let loaded: usize = loader.map(|batch| batch.map_or(0, |batch| batch.tokens.len())).sum();
    println!(
        "loader with FIM: {:.2} M tokens/s",
        loaded as f64 / 1e6 / start.elapsed().as_secs_f64()
    );
    let trigram = timed("count trigrams", train, || baseline::ByteTrigram::train(&split.train));
    let bits = timed("trigram", validation, || trigram.bits_per_byte(&split.validation));
    println!("trigram {bits:.3} bits per byte");
    let bits = timed("gzip", validation, || baseline::gzip(&split.validation));
    println!("gzip {bits:.3} bits per byte");
    Ok(())
}

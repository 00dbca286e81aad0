//! Damaged files: whatever is in one, a reader answers with a value or an error, in bounded time and
//! memory. It never panics.
//!
//! Valid files are damaged structurally, so that the damage gets past the outermost checks: the zip
//! archive is put together again around a changed pickle, JSON stays JSON, lengths and counts are
//! replaced by interesting numbers. Each case follows from its format and seed alone.
//!
//! The short run is part of every test run. The long one:
//!
//! ```sh
//! DANAUS_FUZZ_MINUTES=10 cargo test --release -p danaus-model --test fuzz_formats -- --ignored --nocapture
//! ```
//!
//! `DANAUS_FUZZ_SEED` starts it elsewhere than at seed 0.
//!
//! **Memory.** A counting allocator holds every reader of a binary format to twice the file's length
//! plus [`SLACK`], for opening and for each tensor that is read. JSON is not bounded by its length
//! alone (a parsed value takes up to 32 bytes for two bytes of text): there the factor is
//! [`JSON_FACTOR`]. A chat template prints at most 64 MiB; strings it builds and does not print are
//! bounded by its steps alone, so no case here builds long ones.

mod cases;
mod mutate;

use cases::Format;
use cpu_time::ThreadTime;
use mutate::Random;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Bytes a reader may take beyond twice the file's length.
const SLACK: usize = 16 << 20;
/// Bytes a reader of JSON may take for each byte of text, beyond [`SLACK`].
const JSON_FACTOR: usize = 64;
/// Bytes a template may take: a growing buffer of the longest text it may print, 64 MiB.
const TEMPLATE: usize = 4 * (64 << 20);
/// Longest time a case may compute; time of the processor, so that a busy machine changes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The allocator counts for the whole process, so cases take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What became of some cases.
#[derive(Default)]
struct Tally {
    cases: u64,
    accepted: u64,
    peak: usize,
    slowest: Duration,
}

/// Panics so far, caught ones among them: a reader that answers by catching its own is at fault as well.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics in place of printing them (a printed backtrace takes more memory than any reader).
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            if IS_READING.load(Ordering::Relaxed) {
                println!("{info}");
            } else {
                print(info);
            }
        }));
    });
}

/// Whether a reader is at work, on whose panics no backtrace is printed.
static IS_READING: AtomicBool = AtomicBool::new(false);

/// Reads a file; whether it was accepted, and the memory that was taken at most.
fn measured(format: Format, file: &[u8]) -> (bool, usize) {
    count_panics();
    danaus_runtime::pool::trim();
    IS_READING.store(true, Ordering::Relaxed);
    PEAK.reset_peak_usage();
    let before = PEAK.current_usage();
    let accepted = format.read(file);
    let peak = PEAK.peak_usage().saturating_sub(before);
    IS_READING.store(false, Ordering::Relaxed);
    (accepted, peak)
}

/// Damages a file of a format by a seed and reads it.
fn run(format: Format, seed: u64, tally: &mut Tally) -> Result<(), String> {
    let _turn = turn();
    let file = format.damaged(&mut Random::new(seed, format as u64));
    let panics = PANICS.load(Ordering::Relaxed);
    let start = ThreadTime::now();
    let (accepted, peak) = measured(format, &file);
    let time = start.elapsed();
    let factor = if format.is_text() { JSON_FACTOR } else { 2 };
    let most = if format == Format::Template { TEMPLATE } else { SLACK };
    let bound = factor * file.len() + most;
    tally.cases += 1;
    tally.accepted += u64::from(accepted);
    tally.peak = tally.peak.max(peak);
    tally.slowest = tally.slowest.max(time);
    let size = file.len();
    let shown = String::from_utf8_lossy(&file[..size.min(6000)]);
    if PANICS.load(Ordering::Relaxed) > panics {
        return Err(format!("{format:?} seed {seed}: a panic: {shown}"));
    }
    if peak > bound {
        return Err(format!("{format:?} seed {seed}: {peak} bytes for a file of {size}: {shown}"));
    }
    if time > PATIENCE {
        return Err(format!("{format:?} seed {seed}: {time:?}"));
    }
    Ok(())
}

#[test]
fn undamaged_files_are_accepted() {
    let _turn = turn();
    for format in Format::ALL {
        assert!(format.read(&format.original()), "{format:?}");
    }
}

/// Files that are nothing but header, so that what is kept of it weighs most.
#[test]
fn headers_as_large_as_they_get_stay_within_the_bound() {
    let _turn = turn();
    let gguf = cases::many_tensors(1 << 18);
    let (accepted, peak) = measured(Format::Gguf, &gguf);
    assert!(accepted && peak <= 2 * gguf.len() + SLACK, "{peak} for {}", gguf.len());
    let patterns: [&[u8]; 8] =
        [b"]0", b"}0", b")0", b"K\x01\x850", b"N\x940", b"(t0", b"N", b"(ctorch\nFloatStorage\n1"];
    for pattern in patterns {
        let file = cases::repeated_pickle(pattern, 8 << 20);
        let (_, peak) = measured(Format::Pickle, &file);
        let shown = String::from_utf8_lossy(pattern);
        assert!(peak <= 2 * file.len() + SLACK, "{shown}: {peak} for {}", file.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_answered(seed in any::<u64>()) {
        for format in Format::ALL {
            let outcome = run(format, seed, &mut Tally::default());
            prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
        }
    }
}

fn from_environment(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "runs for DANAUS_FUZZ_MINUTES (default 1)"]
fn damaged_files_are_answered_for_minutes() {
    let minutes = from_environment("DANAUS_FUZZ_MINUTES", 1.0);
    let first = from_environment("DANAUS_FUZZ_SEED", 0.0) as u64;
    let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    let mut tallies: Vec<Tally> = Format::ALL.iter().map(|_| Tally::default()).collect();
    for seed in first.. {
        for (format, tally) in Format::ALL.into_iter().zip(&mut tallies) {
            run(format, seed, tally).unwrap();
        }
        if Instant::now() >= end {
            println!("seeds {first}..={seed}");
            break;
        }
    }
    for (format, tally) in Format::ALL.iter().zip(&tallies) {
        println!(
            "{format:?}: {} cases, {} accepted, at most {} bytes, {:?}",
            tally.cases, tally.accepted, tally.peak, tally.slowest
        );
    }
}

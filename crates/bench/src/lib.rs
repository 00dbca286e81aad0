//! Measuring ourselves: benchmarks against named peers and the machine's roofline, and the golden
//! cases behind `selftest`.
//!
//! The protocol is the same everywhere: variants and peers run in turn within one call, round by
//! round, and medians are compared, so that a drifting clock hits all sides alike. A peer is a script
//! of `benches/peers/` that answers over a pipe; see [`peer`]. Rooflines are measured in the same
//! process ([`roofline`]), never taken from a data sheet.

pub mod error;
pub mod gpu;
pub mod measure;
pub mod peer;
pub mod roofline;
pub mod selftest;
pub mod suites;

pub use error::{Error, Result};

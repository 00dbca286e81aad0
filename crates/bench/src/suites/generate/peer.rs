//! The other side: llama.cpp on the same GGUF file, PyTorch on the same shape.

use super::{LONG_PROMPT, PROMPT, STEPS, Subject};
use crate::peer::Peer;
use crate::{Error, Result};
use danaus_runtime::threads;
use std::path::Path;
use std::time::Duration;

/// A peer that reads prompts and writes tokens.
pub(super) struct Reader {
    peer: Peer,
    subject: String,
}

impl Reader {
    /// Starts the peer of a subject.
    ///
    /// # Errors
    /// When there is none for it, or it cannot be started.
    pub(super) fn start(subject: &Subject, folder: &Path) -> Result<Self> {
        let none = |what: &str| {
            let script = folder.to_path_buf();
            Error::Peer { script, detail: format!("no peer for {what}; leave --peers out") }
        };
        let (script, subject) = match subject {
            Subject::File(path) if path.extension().is_some_and(|end| end == "gguf") => {
                ("gguf_llama_cpp.py", path.display().to_string())
            }
            Subject::File(_) => return Err(none("a file that is not GGUF")),
            Subject::Shape { shape, weights }
                if shape.starts_with("llama") && ["f32", "bf16"].contains(&weights.as_str()) =>
            {
                ("torch_llama.py", format!("{shape} {weights}"))
            }
            Subject::Shape { .. } => return Err(none(&subject.label())),
        };
        Ok(Self { peer: Peer::start(folder, script, threads::count())?, subject })
    }

    /// Time to read the long prompt.
    pub(super) fn prefill(&mut self) -> Result<Duration> {
        self.peer.run(&format!("prefill {LONG_PROMPT} {}", self.subject))
    }

    /// Median time of a step after the short prompt.
    pub(super) fn step(&mut self, batch: usize) -> Result<Duration> {
        self.peer.run(&format!("decode {batch} {PROMPT} {STEPS} {}", self.subject))
    }
}

//! Peers: other libraries, measured by scripts over a pipe.
//!
//! A script of `benches/peers/` is started once a suite with the number of threads as argument. For
//! every line `NAME` on its standard input it runs that case once and prints the seconds it took. It
//! sets a case up at its first run, outside the time. `error: TEXT` means that the peer cannot do the
//! case. This lets both sides take turns within one measurement.

use crate::{Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A running peer script.
pub struct Peer {
    script: PathBuf,
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `folder/script` with the Python of `DANAUS_PYTHON` (else `python3`).
    ///
    /// # Errors
    /// When the script or the interpreter is not there, or a library it needs is not installed.
    pub fn start(folder: &Path, script: &str, threads: usize) -> Result<Self> {
        let script = folder.join(script);
        let fail = |detail: String| Error::Peer { script: script.clone(), detail };
        if !script.is_file() {
            return Err(fail("not found; run from the repository or give --peers-dir".into()));
        }
        let python = std::env::var("DANAUS_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut child = Command::new(&python)
            .arg(&script)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(format!("cannot start {python}: {error}")))?;
        let (requests, answers) = match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => (requests, BufReader::new(answers)),
            _ => return Err(fail("no pipes".into())),
        };
        let mut peer = Self { script: script.clone(), child, requests, answers };
        let hello = peer.line()?;
        if hello.trim() != "ready" {
            let remedy = "set DANAUS_PYTHON to a Python that has the peer's libraries";
            return Err(fail(format!("said {:?} instead of ready; {remedy}", hello.trim())));
        }
        Ok(peer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        match read {
            Ok(count) if count > 0 => Ok(line),
            Ok(_) => Err(self.error("ended early; its message is above")),
            Err(error) => Err(self.error(&error.to_string())),
        }
    }

    fn error(&self, detail: &str) -> Error {
        Error::Peer { script: self.script.clone(), detail: detail.to_string() }
    }

    /// Runs a case once.
    ///
    /// # Errors
    /// When the peer does not know the case or fails.
    pub fn run(&mut self, case: &str) -> Result<Duration> {
        let sent = writeln!(self.requests, "{case}").and_then(|()| self.requests.flush());
        sent.map_err(|error| self.error(&error.to_string()))?;
        let answer = self.line()?;
        let seconds: f64 =
            answer.trim().parse().map_err(|_| self.error(&format!("{case}: {}", answer.trim())))?;
        Duration::try_from_secs_f64(seconds).map_err(|error| self.error(&error.to_string()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The script may have ended by itself; either way nothing is left to report.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

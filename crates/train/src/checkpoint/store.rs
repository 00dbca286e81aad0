//! The folder of a run's checkpoints: complete ones, the pointer to the newest, and cleaning up.

use super::MANIFEST_NAME;
use crate::{Error, Result};
use danaus_runtime::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const POINTER: &str = "latest";
const PREFIX: &str = "step-";

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store below a run's folder; nothing is created yet.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// The folder that holds the checkpoints.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest complete checkpoint, if there is one.
    ///
    /// Normally the one the pointer names. Where the pointer is missing or names something that is
    /// not there (a folder copied in parts), the complete folder with the highest step.
    ///
    /// # Errors
    /// When the folder exists but cannot be read.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let named = std::fs::read_to_string(self.folder.join(POINTER)).ok();
        let named = named.filter(|name| step_of(name.trim()).is_some());
        let named = named.map(|name| self.folder.join(name.trim()));
        if let Some(folder) = named.filter(|folder| is_complete(folder)) {
            return Ok(Some(folder));
        }
        let steps = self.steps()?;
        Ok(steps.into_iter().map(|step| self.path(step)).rfind(|folder| is_complete(folder)))
    }

    /// Where the checkpoint of a step stands.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step}"))
    }

    /// Writes the checkpoint of `step`: `fill` puts the files into a temporary folder, which then
    /// takes its name and is pointed to. Older ones beyond `keep` are removed.
    ///
    /// # Errors
    /// When anything cannot be written; the previous checkpoint stays whole and named.
    pub fn save(
        &self,
        step: u64,
        keep: usize,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let target = self.path(step);
        self.prepare()?;
        replace_folder(&target, fill)?;
        let pointer = self.folder.join(POINTER);
        fs::write_atomic(&pointer, |writer| writeln!(writer, "{PREFIX}{step}"))
            .map_err(Error::io(&pointer))?;
        self.prune(keep, step)?;
        Ok(target)
    }

    /// Makes the folder and removes what a killed run left unfinished.
    fn prepare(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            let leftover = path.extension().is_some_and(|kind| kind == "tmp" || kind == "old");
            if leftover && path.is_dir() {
                std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    /// Steps of all checkpoint folders, in increasing order.
    fn steps(&self) -> Result<Vec<u64>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let entry = entry.map_err(Error::io(&self.folder))?;
            steps.extend(entry.file_name().to_str().and_then(step_of));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Keeps the newest `keep` checkpoints up to `newest`. Later ones belong to a part of the run
    /// that was given up when it resumed from an earlier step, and are removed too.
    fn prune(&self, keep: usize, newest: u64) -> Result<()> {
        let steps = self.steps()?;
        let (before, after): (Vec<u64>, Vec<u64>) =
            steps.into_iter().partition(|&step| step <= newest);
        let excess = before.len().saturating_sub(keep.max(1));
        for step in before[..excess].iter().chain(&after) {
            let path = self.path(*step);
            std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        Ok(())
    }
}

/// The step a folder's name stands for.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn is_complete(folder: &Path) -> bool {
    folder.join(MANIFEST_NAME).is_file()
}

fn with_extension(target: &Path, extension: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(extension);
    target.with_file_name(name)
}

/// Puts a folder of this name in place, filled by `fill`; an older one is replaced.
///
/// # Errors
/// Whatever `fill` or the system reports; then nothing of the new folder is left behind.
pub(crate) fn replace_folder(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = with_extension(target, ".tmp");
    let old = with_extension(target, ".old");
    let filled = std::fs::create_dir_all(&temporary)
        .map_err(Error::io(&temporary))
        .and_then(|()| fill(&temporary))
        .and_then(|()| fs::sync_folder(&temporary.join("files")).map_err(Error::io(&temporary)));
    if let Err(error) = filled {
        // The first error is the one that matters; the next save removes what is left.
        let _ = std::fs::remove_dir_all(&temporary);
        return Err(error);
    }
    if target.exists() {
        fs::rename(target, &old).map_err(Error::io(target))?;
    }
    fs::rename(&temporary, target).map_err(Error::io(target))?;
    fs::sync_folder(target).map_err(Error::io(target))?;
    if old.exists() {
        std::fs::remove_dir_all(&old).map_err(Error::io(&old))?;
    }
    Ok(())
}

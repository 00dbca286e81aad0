//! File operations whose details differ between systems: atomic replacement and memory maps.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A read-only view of a file's bytes.
pub struct Mapped(memmap2::Mmap);

impl std::ops::Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file into memory for reading.
///
/// # Errors
/// Whatever opening or mapping the file reports.
pub fn map(path: &Path) -> io::Result<Mapped> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only. Another process truncating the file while we read it would raise
    // SIGBUS, as for every memory-mapped reader; our own writers replace files, never truncate them.
    unsafe { memmap2::Mmap::map(&file).map(Mapped) }
}

fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Replaces `path` by what `fill` writes: temporary file, flush to disk, rename.
///
/// A reader sees the old file or the new one, never a part. On failure the old file is untouched and
/// the temporary one is removed.
///
/// # Errors
/// Whatever creating, filling, syncing or renaming the file reports.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut io::BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, |temporary| {
        let mut writer = io::BufWriter::with_capacity(1 << 20, File::create(temporary)?);
        fill(&mut writer)?;
        writer.flush()
    })
}

/// As [`write_atomic`], for writers that want a path. The file gets the permissions of any new file,
/// whatever `fill` gives it.
///
/// # Errors
/// Whatever `fill`, syncing or renaming the file reports.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = sibling(path);
    let permissions = File::create(&temporary)?.metadata()?.permissions();
    let written = fill(&temporary)
        .and_then(|()| Ok(std::fs::set_permissions(&temporary, permissions)?))
        .and_then(|()| Ok(File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(rename(&temporary, path)?));
    match written {
        Ok(()) => Ok(sync_folder(path)?),
        Err(error) => {
            // The error that matters is the first one; a temporary file left behind is harmless.
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Renames a file or folder and replaces a file that stands there.
///
/// # Errors
/// Whatever the system reports.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Makes the entry of `path` in its folder durable (a no-op where folders cannot be synced).
///
/// # Errors
/// Whatever the system reports.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(parent) = path.parent() {
        let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        return File::open(folder)?.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_replaced_file_has_the_permissions_of_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("danaus-mode-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        let (plain, path) = (folder.join("plain"), folder.join("replaced"));
        File::create(&plain).unwrap();
        replace::<io::Error>(&path, |temporary| {
            std::fs::write(temporary, "private")?;
            std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(0o600))
        })
        .unwrap();
        assert_eq!(mode(&path), mode(&plain));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn failed_write_keeps_the_old_file() {
        let folder = std::env::temp_dir().join(format!("danaus-fs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("value");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write_atomic(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(&*map(&path).unwrap(), b"old");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

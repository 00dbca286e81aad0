//! Finding candidate files, in an order that does not depend on the file system.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::Source;
use crate::{Error, Result};

/// Extensions taken from the crates of the registry.
const REGISTRY_EXTENSIONS: [&str; 3] = ["rs", "md", "toml"];

/// Extensions taken from a folder: source code and prose.
const FOLDER_EXTENSIONS: [&str; 47] = [
    "adoc", "bash", "c", "cc", "cfg", "clj", "cpp", "cs", "css", "cu", "cuh", "cxx", "dart", "ex",
    "f90", "go", "h", "hpp", "hs", "html", "java", "jl", "js", "jsx", "kt", "lua", "md", "ml",
    "php", "pl", "proto", "py", "r", "rb", "rs", "rst", "scala", "sh", "sql", "swift", "tex",
    "toml", "ts", "tsx", "txt", "yaml", "yml",
];

/// A file that may become a document.
pub(super) struct Candidate {
    pub path: PathBuf,
    pub name: String,
    pub group: String,
    pub size: u64,
}

/// Cargo's home: `$CARGO_HOME`, else `.cargo` in the user's home folder.
pub fn cargo_registry() -> Option<Source> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let user = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"))?;
        Some(PathBuf::from(user).join(".cargo"))
    })?;
    Some(Source::CargoRegistry(home))
}

impl Source {
    /// The folder or file that is read.
    pub fn root(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::CargoRegistry(home) => home.join("registry").join("src"),
        }
    }

    pub(super) fn default_extensions(&self) -> &'static [&'static str] {
        match self {
            Self::Path(_) => &FOLDER_EXTENSIONS,
            Self::CargoRegistry(_) => &REGISTRY_EXTENSIONS,
        }
    }
}

/// Whether a file is prose rather than code, by its extension; files without one are prose.
pub(super) fn is_prose(path: &Path) -> bool {
    extension(path).is_none_or(|e| ["md", "txt", "rst", "adoc", "tex"].contains(&e.as_str()))
}

pub(super) fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// All files of a source, sorted by name. Hidden entries, build folders of cargo and links are
/// passed over.
pub(super) fn list(source: &Source) -> Result<Vec<Candidate>> {
    let root = source.root();
    let metadata = std::fs::metadata(&root).map_err(|e| Error::io("read", &root, e))?;
    if metadata.is_file() {
        let name = root.file_name().unwrap_or(root.as_os_str()).to_string_lossy().into_owned();
        let size = metadata.len();
        return Ok(vec![Candidate { path: root, group: name.clone(), name, size }]);
    }
    let walk = WalkDir::new(&root).sort_by_file_name().into_iter().filter_entry(|entry| {
        let name = entry.file_name().to_string_lossy();
        let is_build = entry.file_type().is_dir() && name == "target";
        entry.depth() == 0 || !(name.starts_with('.') || is_build)
    });
    let mut candidates = Vec::new();
    for entry in walk {
        let entry = entry.map_err(|e| walk_error(&root, e))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let size = entry.metadata().map_err(|e| walk_error(&root, e))?.len();
        let parts: Vec<String> = entry
            .path()
            .strip_prefix(&root)
            .unwrap_or(entry.path())
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        let (name, group) = match source {
            Source::Path(_) => (parts.join("/"), parts.join("/")),
            Source::CargoRegistry(_) => {
                // The first part names the registry; it differs between machines and is left out.
                let Some((package, _)) = parts[1..].split_first() else { continue };
                (parts[1..].join("/"), package_name(package).to_string())
            }
        };
        candidates.push(Candidate { path: entry.into_path(), name, group, size });
    }
    Ok(candidates)
}

fn walk_error(root: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(root).to_path_buf();
    let source = error.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
    Error::io("list", &path, source)
}

/// `serde-json-1.0.2-rc.1` -> `serde-json`: the version begins after the first `-` that is followed
/// by a number and a dot.
pub(super) fn package_name(folder: &str) -> &str {
    let version = folder.match_indices('-').find(|(at, _)| {
        let rest = folder[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
        rest.len() < folder.len() - at - 1 && rest.starts_with('.')
    });
    version.map_or(folder, |(at, _)| &folder[..at])
}

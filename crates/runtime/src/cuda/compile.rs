//! From CUDA C++ to a cubin: NVRTC, a folder of prebuilt kernels, a cache on disk.
//!
//! A [`Source`] is a real `.cuh` file embedded with `include_str!` and the headers it includes, or
//! text generated from an expression. [`Defines`] instantiate it: `-D` constants, nothing pasted.
//!
//! # The cache
//! The key is a SHA-256 of the source's name and text, every header's name and text, the flags with
//! all constants, and the chip; in the user's cache the NVRTC version belongs to it too. Files appear
//! by rename, so that two processes may race: the loser writes the same bytes once more. A file that
//! is not a cubin is compiled anew. A cache that cannot be written only costs time.

use super::{Error, Result};
use cudarc::nvrtc::{result as nvrtc, sys};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::ffi::{CString, c_char};
use std::fmt::{self, Display, Write as _};
use std::path::{Path, PathBuf};

/// A chip: compute capability with its own instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    major: u32,
    minor: u32,
}

impl Arch {
    /// Chip of a compute capability, such as (9, 0).
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// First digit of the compute capability.
    pub const fn major(self) -> u32 {
        self.major
    }

    /// As one number: 80, 90, 100.
    pub const fn number(self) -> u32 {
        self.major * 10 + self.minor
    }
}

impl Display for Arch {
    /// `sm_80`, `sm_90a`: from 9.0 on with the instructions that only this chip has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.major >= 9 { "a" } else { "" };
        write!(f, "sm_{}{}{suffix}", self.major, self.minor)
    }
}

impl std::str::FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_start_matches("sm_").trim_end_matches('a');
        let arch = digits.parse::<u32>().ok().map(|number| Self::new(number / 10, number % 10));
        arch.filter(|arch| arch.number() >= 80 && arch.to_string() == text).ok_or_else(|| {
            let valid = "sm_80, sm_86, sm_89, sm_90a, sm_100a or sm_120a";
            Error::argument("arch", "--arch", text, valid)
        })
    }
}

/// A header that sources include by name.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Name in `#include "..."`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The text of one compilation.
#[derive(Clone, Debug)]
pub struct Source {
    name: Cow<'static, str>,
    text: Cow<'static, str>,
    headers: &'static [Header],
}

impl Source {
    /// A file of the program, embedded with `include_str!`. `headers` lists all that it includes,
    /// directly or not.
    pub const fn new(name: &'static str, text: &'static str, headers: &'static [Header]) -> Self {
        Self { name: Cow::Borrowed(name), text: Cow::Borrowed(text), headers }
    }

    /// Text made at run time, such as a fused expression.
    pub fn generated(name: String, text: String, headers: &'static [Header]) -> Self {
        Self { name: Cow::Owned(name), text: Cow::Owned(text), headers }
    }

    /// Name in messages and file names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes what tells this source from all others of the process.
    pub(super) fn identify(&self, key: &mut String) {
        key.push_str(&self.name);
        match &self.text {
            // Embedded text never moves.
            Cow::Borrowed(text) => _ = write!(key, "\0{:p}", text.as_ptr()),
            Cow::Owned(text) => _ = write!(key, "\0{text}"),
        }
    }
}

/// Constants of an instantiation, as `-D name=value`.
///
/// Names have at least two letters and no word of a header's template parameters (`T`, `GROUP`): a
/// macro replaces those too, in the compiler's own headers as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defines(Vec<(&'static str, String)>);

impl Defines {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// With one more.
    pub fn set(mut self, name: &'static str, value: impl Display) -> Self {
        self.0.push((name, value.to_string()));
        self
    }

    /// Names and values in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

impl Display for Defines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{name}={value}")?;
        }
        Ok(())
    }
}

/// A kernel variant that is shipped: compiled for every chip by `danaus kernels build` and in tests.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The source.
    pub source: Source,
    /// Its constants.
    pub defines: Defines,
    /// The lowest compute capability that it compiles for, such as 80 or 90.
    pub from: u32,
    /// Why registers may spill to memory, or wgmma may be serialised; `None` forbids both.
    pub spills: Option<&'static str>,
}

impl Variant {
    /// A variant for compute capability 8.0 on, without spills.
    pub const fn new(source: Source, defines: Defines) -> Self {
        Self { source, defines, from: 80, spills: None }
    }

    /// Only for chips from this compute capability on.
    pub fn from(self, number: u32) -> Self {
        Self { from: number, ..self }
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// What compiler and assembler said.
    pub log: String,
}

/// What one entry point needs of the chip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Name of the entry point.
    pub entry: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// Stack of a thread in bytes.
    pub stack: u32,
    /// Bytes of a thread that are stored to and loaded from memory for want of registers.
    pub spills: u32,
}

impl Compiled {
    /// The assembler's report, one row an entry point.
    pub fn resources(&self) -> Vec<Resources> {
        resources(&self.log)
    }

    /// Warnings of the assembler that cost speed, such as serialised wgmma.
    pub fn warnings(&self) -> Vec<&str> {
        let costly = |line: &&str| line.contains("Performance Loss") || line.contains("setmaxnreg");
        self.log.lines().filter(costly).map(str::trim).collect()
    }
}

fn resources(log: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            all.push(Resources { entry, ..Resources::default() });
        }
        let Some(last) = all.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            // Functions that the entry point calls have lines of their own.
            last.stack = last.stack.max(number_before(line, "bytes stack frame"));
            last.spills = last
                .spills
                .max(number_before(line, "bytes spill stores"))
                .max(number_before(line, "bytes spill loads"));
        }
        if line.contains("Used ") && line.contains(" registers") {
            last.registers = number_before(line, "registers");
            last.shared = number_before(line, "bytes smem");
        }
    }
    all
}

/// The number that stands before `unit` in a line; 0 if there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().filter(|before| before.len() < line.len());
    let word = before.and_then(|before| before.split_whitespace().last());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Flags of every compilation; the constants and the chip are added.
const FLAGS: [&str; 3] = ["--std=c++17", "--ptxas-options=-v", "-default-device"];

fn flags(defines: &Defines, arch: Arch) -> Vec<String> {
    let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    flags.push(format!("--gpu-architecture={arch}"));
    flags.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    flags
}

/// Everything that decides the machine code, except the compiler.
fn content_key(source: &Source, defines: &Defines, arch: Arch) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        // The length keeps "ab" + "c" and "a" + "bc" apart.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    part(&source.name);
    part(&source.text);
    for header in source.headers {
        part(header.name);
        part(header.text);
    }
    flags(defines, arch).iter().for_each(|flag| part(flag));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// File name of a kernel: readable, and unique by the key.
pub fn file_name(source: &Source, defines: &Defines, arch: Arch) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = source.name.trim_end_matches(".cuh").chars().map(plain).collect();
    format!("{name}-{arch}-{}.cubin", content_key(source, defines, arch))
}

/// Where compiled kernels are kept: `DANAUS_CACHE`, else the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DANAUS_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("danaus")))
        .or_else(|| Some(set("HOME")?.join(".cache").join("danaus")))
        .map(|folder| folder.join("kernels"))
}

/// Compiles a source, or finds what an earlier call, process or build compiled.
///
/// # Errors
/// [`Error::NoLibrary`] without NVRTC, [`Error::Compile`] with the compiler's messages.
pub fn compile(source: &Source, defines: &Defines, arch: Arch) -> Result<Compiled> {
    let name = file_name(source, defines, arch);
    let prebuilt = std::env::var_os("DANAUS_KERNELS").map(|folder| Path::new(&folder).join(&name));
    if let Some(found) = prebuilt.as_deref().and_then(read) {
        return Ok(found);
    }
    let (major, minor) = nvrtc_version()?;
    let path =
        cache_folder().map(|folder| folder.join(format!("nvrtc-{major}.{minor}")).join(&name));
    if let Some(found) = path.as_deref().and_then(read) {
        return Ok(found);
    }
    let compiled = compile_now(source, defines, arch)?;
    if let Some(path) = path {
        // Without the file the next process compiles again; nothing else is lost.
        let _ = write(&path, &compiled);
    }
    Ok(compiled)
}

/// A cubin with its log, if the file is there and is one.
fn read(path: &Path) -> Option<Compiled> {
    let cubin = std::fs::read(path).ok().filter(|bytes| bytes.starts_with(b"\x7fELF"))?;
    let log = std::fs::read_to_string(path.with_extension("log")).ok()?;
    Some(Compiled { cubin, log })
}

/// Writes a cubin and its log so that readers see whole files only.
///
/// # Errors
/// Whatever the file system reports.
pub fn write(path: &Path, compiled: &Compiled) -> std::io::Result<()> {
    use std::io::Write;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The log first: a reader takes a kernel only when both are there.
    let log = compiled.log.as_bytes();
    crate::fs::write_atomic(&path.with_extension("log"), |file| file.write_all(log))?;
    crate::fs::write_atomic(path, |file| file.write_all(&compiled.cubin))
}

/// Version of NVRTC.
///
/// # Errors
/// [`Error::NoLibrary`] when it is not there.
pub fn nvrtc_version() -> Result<(i32, i32)> {
    static PRESENT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: only tries to load the library.
    if !PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }) {
        return Err(Error::NoLibrary {
            library: "the run-time compiler NVRTC (libnvrtc.so.13)",
            remedy: "install it (`pip install nvidia-cuda-nvrtc`, its folder in LD_LIBRARY_PATH), \
                     or name a folder of prebuilt kernels in DANAUS_KERNELS",
        });
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| Error::driver_text("nvrtcVersion", error))?;
    Ok((major, minor))
}

/// A program of NVRTC, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram` and destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// Compiles without looking at or changing any cache.
///
/// # Errors
/// As [`compile`].
pub fn compile_now(source: &Source, defines: &Defines, arch: Arch) -> Result<Compiled> {
    nvrtc_version()?;
    let refused = |log: String| Error::Compile {
        source_name: if defines.0.is_empty() {
            source.name.to_string()
        } else {
            format!("{} with {defines}", source.name)
        },
        arch: arch.to_string(),
        log,
    };
    let text = |text: &str| {
        CString::new(text).map_err(|_| refused(String::from("the text contains a zero byte")))
    };
    let (name, body) = (text(&source.name)?, text(&source.text)?);
    let names: Vec<CString> =
        source.headers.iter().map(|header| text(header.name)).collect::<Result<_>>()?;
    let texts: Vec<CString> =
        source.headers.iter().map(|header| text(header.text)).collect::<Result<_>>()?;
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let (names_at, texts_at): (Vec<*const c_char>, Vec<*const c_char>) =
        (pointers(&names), pointers(&texts));
    let mut raw = std::ptr::null_mut();
    // SAFETY: all strings end with zero and outlive the program; both lists have the same length.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut raw,
            body.as_ptr(),
            name.as_ptr(),
            texts_at.len() as i32,
            texts_at.as_ptr(),
            names_at.as_ptr(),
        )
    }
    .result()
    .map_err(|error| Error::driver_text("nvrtcCreateProgram", error))?;
    let program = Program(raw);
    // SAFETY: the program is alive.
    let done = unsafe { nvrtc::compile_program(program.0, &flags(defines, arch)) };
    // SAFETY: as above.
    let log = unsafe { nvrtc::get_program_log(program.0) }.unwrap_or_default();
    let log: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    if done.is_err() {
        return Err(refused(log));
    }
    let mut size = 0;
    // SAFETY: the program is compiled; writes one number.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) }
        .result()
        .map_err(|error| Error::driver_text("nvrtcGetCUBINSize", error))?;
    let mut cubin = vec![0u8; size];
    // SAFETY: the buffer has the size that was just asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }
        .result()
        .map_err(|error| Error::driver_text("nvrtcGetCUBIN", error))?;
    Ok(Compiled { cubin, log })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWICE: Source = Source::new(
        "twice.cuh",
        "#include \"factor.cuh\"\nextern \"C\" __global__ void twice(TYPE* x) { x[threadIdx.x] *= FACTOR; }",
        &[Header { name: "factor.cuh", text: "#define FACTOR 2" }],
    );

    #[test]
    fn architectures_have_the_names_of_the_compiler() {
        assert_eq!(Arch::new(8, 0).to_string(), "sm_80");
        assert_eq!(Arch::new(9, 0).to_string(), "sm_90a");
        assert_eq!("sm_120a".parse::<Arch>().unwrap(), Arch::new(12, 0));
        for bad in ["sm_90", "90", "sm_70", "sm_a", "sm_80a"] {
            let message = bad.parse::<Arch>().unwrap_err().to_string();
            assert!(message.contains("sm_90a"), "{message}");
        }
    }

    #[test]
    fn the_key_depends_on_everything_that_decides_the_code() {
        let float = Defines::new().set("TYPE", "float");
        let hopper = Arch::new(9, 0);
        let key = content_key(&TWICE, &float, hopper);
        assert_eq!(key, content_key(&TWICE.clone(), &float.clone(), hopper));
        let other_header: &'static [Header] =
            &[Header { name: "factor.cuh", text: "#define FACTOR 3" }];
        let others = [
            content_key(&TWICE, &Defines::new().set("TYPE", "double"), hopper),
            content_key(&TWICE, &float, Arch::new(8, 0)),
            content_key(&Source { headers: other_header, ..TWICE.clone() }, &float, hopper),
            content_key(&Source { text: "".into(), ..TWICE.clone() }, &float, hopper),
            content_key(&Source { name: "thrice".into(), ..TWICE.clone() }, &float, hopper),
        ];
        for other in others {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn the_report_of_the_assembler_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'wide' for 'sm_90a'\n\
            ptxas info    : Function properties for wide\n    \
            16 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem\n\
            ptxas info    : Compiling entry function 'small' for 'sm_90a'\n\
            ptxas info    : Function properties for small\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 12 registers, used 0 barriers, 400 bytes cmem[0]\n";
        let row = |entry: &str, registers, shared, stack, spills| Resources {
            entry: entry.into(),
            registers,
            shared,
            stack,
            spills,
        };
        assert_eq!(resources(log), [row("wide", 255, 2048, 16, 24), row("small", 12, 0, 0, 0)]);
    }

    #[test]
    fn a_torn_file_is_no_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("a.cubin");
        assert!(read(&path).is_none());
        let whole = Compiled { cubin: b"\x7fELF rest".to_vec(), log: "said".into() };
        write(&path, &whole).unwrap();
        let back = read(&path).unwrap();
        assert_eq!((back.cubin, back.log), (whole.cubin, whole.log));
        std::fs::write(&path, b"torn").unwrap();
        assert!(read(&path).is_none());
    }

    #[test]
    fn two_writers_may_race() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.cubin");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let one = Compiled { cubin: b"\x7fELF same".to_vec(), log: "l".into() };
                        // The temporary names of two threads of one process are equal, so a rename
                        // may find nothing left to rename; the file itself is whole at any time.
                        let _ = write(&path, &one);
                    }
                });
            }
        });
        assert_eq!(read(&path).unwrap().cubin, b"\x7fELF same");
    }

    /// Runs where NVRTC is installed; elsewhere the error must say how to get it.
    #[test]
    fn compiles_without_a_gpu_or_says_what_is_missing() {
        let defines = Defines::new().set("TYPE", "float");
        match compile_now(&TWICE, &defines, Arch::new(8, 0)) {
            Ok(compiled) => {
                assert!(compiled.cubin.starts_with(b"\x7fELF"));
                let resources = compiled.resources();
                assert_eq!(resources.len(), 1);
                assert_eq!((resources[0].entry.as_str(), resources[0].spills), ("twice", 0));
                assert!(resources[0].registers > 0);
                let bad = compile_now(&TWICE, &Defines::new(), Arch::new(8, 0)).unwrap_err();
                assert!(bad.to_string().contains("TYPE"), "{bad}");
            }
            Err(error) => assert!(error.to_string().contains("pip install"), "{error}"),
        }
    }
}

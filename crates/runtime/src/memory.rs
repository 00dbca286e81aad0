//! How much memory the machine has, and how much this process uses.

/// Bytes that can be allocated without swapping, as far as the system tells: what the machine, the
/// control group and the process's limit on its address space leave.
///
/// `None` where the system does not say (then nothing is refused for lack of memory).
pub fn available_bytes() -> Option<u64> {
    let machine = proc_field("/proc/meminfo", "MemAvailable:")?;
    let machine = address_space_left().map_or(machine, |left| machine.min(left));
    // A control group may allow less than the machine has.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    let used = std::fs::read_to_string("/sys/fs/cgroup/memory.current")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    Some(match (limit, used) {
        (Some(limit), Some(used)) => machine.min(limit.saturating_sub(used)),
        _ => machine,
    })
}

/// What `ulimit -v` leaves; `None` where there is no limit.
fn address_space_left() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: all-zero bytes are a valid `rlimit` record.
        let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
        // SAFETY: `limit` outlives the call.
        let code = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
        if code != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
            return None;
        }
        let used = proc_field("/proc/self/status", "VmSize:")?;
        // The field's width differs between systems.
        #[allow(clippy::unnecessary_cast)]
        Some((limit.rlim_cur as u64).saturating_sub(used))
    }
    #[cfg(not(unix))]
    None
}

/// A number of bytes in words.
pub fn in_words(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// The largest resident size of this process so far, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    proc_field("/proc/self/status", "VmHWM:")
}

/// Free bytes on the file system that holds `path`.
pub fn free_disk_bytes(path: &std::path::Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: all-zero bytes are a valid `statvfs` record.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: `name` is a NUL-terminated string and `stat` outlives the call.
        let code = unsafe { libc::statvfs(name.as_ptr(), &mut stat) };
        // The field's width differs between systems.
        #[allow(clippy::unnecessary_cast)]
        (code == 0).then(|| stat.f_bavail as u64 * stat.f_frsize as u64)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// A `Name:   12345 kB` line of a file under /proc, in bytes.
fn proc_field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

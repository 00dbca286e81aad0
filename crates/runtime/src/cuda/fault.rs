//! Bad values that only a kernel sees, such as an index outside of a table.
//!
//! The host cannot check indices that live on the device without waiting for it. A kernel that meets a
//! bad one reports it here, uses a harmless value instead and goes on; the next call that waits
//! returns it as an error. The report lies in host memory that the device writes to directly, so that
//! looking at it costs nothing. Of several reports the first one counts.

use super::gpu::lock;
use super::{Error, Gpu, Result};
use cudarc::driver::{CudaContext, result};
use std::sync::{Arc, Mutex};

/// What a kernel writes, in the order that `device/fault` code writes it: the place, then the value
/// and its bound, then `set`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Report {
    /// 0 free, 1 being written, 2 complete.
    set: u32,
    /// Index of the check in [`Faults::checks`].
    check: u32,
    value: i64,
    bound: i64,
}

/// Device code that reports: `fault_index(fault, check, value, bound)` is true for a value inside
/// `0..bound`.
pub const HEADER: super::Header =
    super::Header { name: "fault.cuh", text: include_str!("fault.cuh") };

/// The place of one device.
pub(super) struct Faults {
    report: *mut Report,
    /// Operator and argument of every check that was ever launched.
    checks: Mutex<Vec<(&'static str, &'static str)>>,
}

// SAFETY: the report is only read after the device was waited for, through volatile reads.
unsafe impl Send for Faults {}
// SAFETY: as above.
unsafe impl Sync for Faults {}

/// What a kernel that checks values gets: where to report, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Address of the report, for a `Fault*` parameter.
    pub address: u64,
    /// Number of the check, for an `unsigned` parameter.
    pub number: u32,
}

impl Faults {
    pub(super) fn of(_context: &Arc<CudaContext>) -> Result<Self> {
        // SAFETY: the context is current on this thread; the memory is written before it is used, and
        // lives as long as the process, as devices do.
        let report = unsafe {
            let report = result::malloc_host(size_of::<Report>(), 0)
                .map_err(|error| Error::driver("cuMemHostAlloc", error))?
                .cast::<Report>();
            report.write(Report { set: 0, check: 0, value: 0, bound: 0 });
            report
        };
        Ok(Self { report, checks: Mutex::new(Vec::new()) })
    }

    /// The report, once; the device was waited for.
    pub(super) fn take(&self) -> Result<()> {
        // SAFETY: nothing runs on the device that could write meanwhile.
        let report = unsafe { self.report.read_volatile() };
        if report.set == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*self.report).set).write_volatile(0) };
        let checks = lock(&self.checks);
        let (call, what) =
            checks.get(report.check as usize).copied().unwrap_or(("kernel", "index"));
        let valid = match report.bound {
            0 => String::from("nothing: the dimension is empty"),
            bound => format!("0 to {}", bound - 1),
        };
        Err(Error::argument(call, what, report.value, valid))
    }
}

impl Gpu {
    /// Registers a check of an operator's argument for kernels that get it.
    pub fn check(&self, op: &'static str, argument: &'static str) -> Check {
        let mut checks = lock(&self.faults.checks);
        let known = checks.iter().position(|check| *check == (op, argument));
        let number = known.unwrap_or_else(|| {
            checks.push((op, argument));
            checks.len() - 1
        });
        // Host memory has the same address on both sides (unified addressing).
        Check { address: self.faults.report as u64, number: number as u32 }
    }
}

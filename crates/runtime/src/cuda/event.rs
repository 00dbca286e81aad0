//! Time on the GPU's clock.

use super::{Error, Gpu, Result};
use cudarc::driver::{CudaEvent, sys};
use std::sync::Arc;

/// A mark on the compute stream.
pub struct Event {
    gpu: Arc<Gpu>,
    event: CudaEvent,
}

impl Event {
    /// Puts a mark behind everything that is on the stream now.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn record(gpu: &Arc<Gpu>) -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = gpu.stream.record_event(Some(flags));
        let event = event.map_err(|error| gpu.blame(Error::driver("cuEventRecord", error)))?;
        Ok(Self { gpu: gpu.clone(), event })
    }

    /// Waits until the GPU has reached the mark.
    ///
    /// # Errors
    /// Whatever went wrong on the device before it.
    pub fn wait(&self) -> Result<()> {
        let done = self.event.synchronize();
        done.map_err(|error| self.gpu.blame(Error::driver("cuEventSynchronize", error)))
    }

    /// Milliseconds from this mark to a later one; waits for both.
    ///
    /// # Errors
    /// Whatever went wrong on the device before them.
    pub fn elapsed_ms(&self, later: &Event) -> Result<f32> {
        let time = self.event.elapsed_ms(&later.event);
        time.map_err(|error| self.gpu.blame(Error::driver("cuEventElapsedTime", error)))
    }
}

/// Milliseconds that the GPU spends on what `work` puts on the stream.
///
/// # Errors
/// Those of `work`, and of the device.
pub fn time<E: From<Error>>(
    gpu: &Arc<Gpu>,
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<f32, E> {
    let start = Event::record(gpu)?;
    work()?;
    let end = Event::record(gpu)?;
    Ok(start.elapsed_ms(&end)?)
}

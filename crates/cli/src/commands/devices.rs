//! `danaus devices`.

use danaus::runtime::cuda::{Gpu, compile, gpu};
use danaus::runtime::{memory, simd, threads};
use std::process::ExitCode;

const GIB: f64 = (1u64 << 30) as f64;

pub fn run() -> anyhow::Result<ExitCode> {
    let free = memory::available_bytes()
        .map_or(String::from("unknown"), |bytes| format!("{:.1} GiB", bytes as f64 / GIB));
    println!("cpu: {} threads, {}, {free} of memory free", threads::count(), simd::isa().name());
    match Gpu::count() {
        Err(error) => println!("cuda: none ({error})"),
        Ok(0) => println!("cuda: the driver is there, but shows no GPU"),
        Ok(count) => (0..count).for_each(print),
    }
    match compile::nvrtc_version() {
        Ok((major, minor)) => println!("nvrtc: {major}.{minor}"),
        Err(error) => println!("nvrtc: none ({error})"),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(index: usize) {
    let gpu = match Gpu::get(index) {
        Ok(gpu) => gpu,
        Err(error) => return println!("cuda:{index}: {error}"),
    };
    let limits = gpu.limits();
    let driver = gpu::driver_version().unwrap_or(0);
    println!(
        "cuda:{index}: {}, {}, {} multiprocessors, {:.1} GiB, {} KiB shared memory a block, \
         {} MiB L2, driver for CUDA {}.{}",
        gpu.name(),
        gpu.arch(),
        limits.multiprocessors,
        limits.memory_bytes as f64 / GIB,
        limits.shared_per_block >> 10,
        limits.l2_bytes >> 20,
        driver / 1000,
        driver % 1000 / 10
    );
}

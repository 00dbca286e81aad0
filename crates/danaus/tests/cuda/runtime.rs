//! The runtime below tensors: memory, launches, graphs, events, tensor maps.

use crate::{gpu, randn};
use danaus::runtime::cuda::tensor_map::MapType;
use danaus::runtime::cuda::{
    Defines, DeviceBuffer, Error, Gpu, Graph, Launch, PinnedBuffer, Source, Swizzle, TensorMapSpec,
    time,
};
use danaus::tensor::{DType, Tensor, no_grad};
use std::sync::Arc;

static SCALE: Source = Source::new(
    "scale.cuh",
    "extern \"C\" __global__ void scale(float* x, float factor, int count) {\n\
     int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < count) x[i] *= factor * FACTOR; }",
    &[],
);

fn device() -> Option<Arc<Gpu>> {
    gpu().map(|device| device.gpu().unwrap())
}

fn floats(buffer: &DeviceBuffer) -> Vec<f32> {
    let mut bytes = vec![0u8; buffer.len()];
    buffer.copy_to_host(0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn upload(gpu: &Arc<Gpu>, values: &[f32]) -> DeviceBuffer {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    DeviceBuffer::from_host(gpu, &bytes).unwrap()
}

#[test]
fn a_kernel_runs_and_its_arguments_are_checked() {
    let Some(gpu) = device() else { return };
    let x = upload(&gpu, &[1.0, 2.0, 3.0]);
    let kernel = gpu.kernel(&SCALE, "scale", &Defines::new().set("FACTOR", "2.0f")).unwrap();
    let launch = Launch::linear(1, 32);
    // SAFETY: the buffer has three elements, which is what the kernel is told.
    unsafe { kernel.launch(&launch, &[&x, &1.5f32, &3i32]).unwrap() };
    assert_eq!(floats(&x), [3.0, 6.0, 9.0]);
    // SAFETY: refused before anything runs.
    let wrong = unsafe { kernel.launch(&launch, &[&x, &1.5f64, &3i32]) }.unwrap_err();
    assert!(
        wrong.to_string().contains("scale: an argument's size is 8 bytes at position 1"),
        "{wrong}"
    );
    // SAFETY: as above.
    let wrong =
        unsafe { kernel.launch(&Launch::linear(1, 2048), &[&x, &1f32, &3i32]) }.unwrap_err();
    assert!(wrong.to_string().contains("block is 2048"), "{wrong}");
    let missing = gpu.kernel(&SCALE, "stretch", &Defines::new().set("FACTOR", "2.0f"));
    assert!(missing.map(drop).unwrap_err().to_string().contains("scale.cuh"));
}

#[test]
fn memory_is_counted_and_its_lack_is_an_error() {
    let Some(gpu) = device() else { return };
    let before = gpu.memory_statistics().unwrap();
    let buffer = DeviceBuffer::zeroed(&gpu, 10 << 20).unwrap();
    let during = gpu.memory_statistics().unwrap();
    assert_eq!(during.live, before.live + (10 << 20));
    assert!(during.peak >= during.live && during.reserved >= 10 << 20);
    drop(buffer);
    assert_eq!(gpu.memory_statistics().unwrap().live, before.live);
    match DeviceBuffer::uninit(&gpu, 1 << 45) {
        Err(Error::OutOfMemory { asked, total, .. }) => {
            assert_eq!(asked, 1 << 45);
            assert_eq!(total, gpu.limits().memory_bytes);
        }
        other => panic!("{other:?}"),
    }
    let mut small = DeviceBuffer::zeroed(&gpu, 16).unwrap();
    assert!(small.copy_from_host(8, &[0; 9]).is_err());
}

#[test]
fn pinned_copies_go_both_ways() {
    let Some(gpu) = device() else { return };
    let mut pinned = PinnedBuffer::zeroed(&gpu, 1 << 20).unwrap();
    pinned.bytes_mut().unwrap().iter_mut().enumerate().for_each(|(i, b)| *b = (i * 7) as u8);
    let pinned = Arc::new(pinned);
    let mut there = DeviceBuffer::uninit(&gpu, 1 << 20).unwrap();
    there.copy_from_pinned(0, &pinned).unwrap();
    let mut back = PinnedBuffer::zeroed(&gpu, 1 << 20).unwrap();
    back.copy_from_device(&there).unwrap();
    gpu.synchronize().unwrap();
    assert!(back.bytes() == pinned.bytes());
}

/// A graph's temporaries come from its own memory, so that a replay finds them where they were.
#[test]
fn a_graph_replays_with_new_inputs() {
    let Some(device) = gpu() else { return };
    let gpu = device.gpu().unwrap();
    no_grad(|| {
        let x = randn(1, &[64, 64], DType::F32).to_device(&device).unwrap();
        let y = randn(2, &[64, 64], DType::F32).to_device(&device).unwrap();
        let work =
            || -> danaus::tensor::Result<Tensor> { x.add(&y)?.mul(&x)?.matmul(&y)?.exp()?.sum(1) };
        let expected = work().unwrap().to_vec::<f32>().unwrap();
        let captured = Graph::capture::<_, danaus::tensor::Error>(&gpu, work);
        let (mut graph, out) = captured.unwrap();
        for _ in 0..3 {
            graph.replay().unwrap();
        }
        let noise = randn(3, &[1 << 20], DType::F32).to_device(&device).unwrap();
        drop(noise);
        assert_eq!(out.to_vec::<f32>().unwrap(), expected);
        assert!(graph.bytes() > 0);
        drop(graph);
        assert_eq!(out.to_vec::<f32>().unwrap(), expected);
    });
}

#[test]
fn the_gpus_clock_runs() {
    let Some(gpu) = device() else { return };
    let mut buffer = DeviceBuffer::uninit(&gpu, 256 << 20).unwrap();
    let ms = time(&gpu, || -> Result<(), Error> { buffer.set_bytes(1) }).unwrap();
    // 256 MiB at 1 to 10 TB/s.
    assert!((0.01..5.0).contains(&ms), "{ms} ms");
}

static TILE: Source = Source::new("tile.cuh", include_str!("tile.cuh"), &[]);

#[test]
fn a_tensor_map_moves_a_tile_in_clusters() {
    let Some(gpu) = device().filter(|gpu| gpu.arch().major() >= 9) else { return };
    let values: Vec<f32> = (0..64 * 96).map(|i| i as f32).collect();
    let x = upload(&gpu, &values);
    let y = DeviceBuffer::zeroed(&gpu, 32 * 16 * 4).unwrap();
    let map = TensorMapSpec {
        address: x.address(),
        dtype: MapType::F32,
        dims: &[96, 64],
        strides: &[96 * 4],
        box_dims: &[32, 16],
        swizzle: Swizzle::None,
    };
    let map = map.encode().unwrap();
    let kernel = gpu.kernel(&TILE, "tile", &Defines::new()).unwrap();
    let launch = Launch::linear(2, 128).cluster([2, 1, 1]).dependent();
    // SAFETY: the kernel writes one tile of 32 x 16 floats.
    unsafe { kernel.launch(&launch, &[&map, &y, &40i32, &8i32]).unwrap() };
    let tile = floats(&y);
    for (at, value) in tile.iter().enumerate() {
        let (row, column) = (8 + at / 32, 40 + at % 32);
        assert_eq!(*value, (row * 96 + column) as f32, "{row} {column}");
    }
}

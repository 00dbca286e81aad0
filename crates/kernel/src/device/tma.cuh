// The bulk copy engine: tensor tiles and flat runs between global and shared memory.
//
// A tile of 16-bit rows is held as column panels of 64 elements (128 bytes), each panel all rows, with
// the 128-byte swizzle. The tensor map of a row-major matrix of width d is therefore five-dimensional,
// (64, rows, d / 64, heads, batch): one copy brings a whole tile, panel after panel.
#pragma once

#include "device/barrier.cuh"

namespace danaus {

// What cuTensorMapEncodeTiled wrote; a `__grid_constant__` kernel argument.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// Cache policies of the L2, in the encoding of createpolicy.
enum class L2 : u64 {
    kEvictFirst = 0x12F0000000000000ull,
    kEvictLast = 0x14F0000000000000ull,
};

DEVICE void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Where a tile starts: first row, head and batch. The tile's other two coordinates are 0.
struct TileOrigin {
    int row;
    int head;
    int batch;
};

DEVICE void load_tile(u32 destination, const TensorMap& map, Barrier barrier, TileOrigin at, L2 policy) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(destination),
        "l"(&map), "r"(barrier.address), "r"(0), "r"(at.row), "r"(0), "r"(at.head), "r"(at.batch),
        "l"(static_cast<u64>(policy))
        : "memory");
}

// Rows and columns beyond the tensor are not written.
DEVICE void store_tile(const TensorMap& map, u32 source, TileOrigin at) {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
        "r"(source), "r"(0), "r"(at.row), "r"(0), "r"(at.head), "r"(at.batch)
        : "memory");
}

// Flat copies; addresses and sizes are multiples of 16 bytes.
DEVICE void load_run(u32 destination, const void* source, u32 bytes, Barrier barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
        "l"(source), "r"(bytes), "r"(barrier.address)
        : "memory");
}

DEVICE void store_run(void* destination, u32 source, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(source), "r"(bytes) : "memory");
}

DEVICE void add_run(float* destination, u32 source, u32 bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(destination), "r"(source), "r"(bytes) : "memory");
}

DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most `kPending` groups of stores still read their shared memory.
template <int kPending>
DEVICE void wait_stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Until at most `kPending` groups of stores are not yet visible.
template <int kPending>
DEVICE void wait_stores() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace danaus

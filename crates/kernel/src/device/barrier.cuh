// Ordering between threads: mbarriers in shared memory, named barriers, proxy fences, register shares.
//
// Contract of a ring of stages. The producer waits on `empty` with the parity of `Ring::producer`, the
// consumer on `full` with the parity of `Ring::consumer`; both start at stage 0 and advance alike. A
// fresh mbarrier counts as "the phase before the first has completed", so the producer's first pass
// does not block.
#pragma once

#include "device/types.cuh"

namespace danaus {

// An mbarrier, by its address in shared memory.
struct Barrier {
    u32 address;

    DEVICE void init(int arrivals) const {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
    }

    DEVICE void arrive() const {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
    }

    // One arrival that also announces bytes of asynchronous copies.
    DEVICE void arrive_expect(u32 bytes) const {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
    }

    DEVICE bool try_wait(u32 parity) const {
        u32 done;
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
        return done != 0;
    }

    DEVICE void wait(u32 parity) const {
#ifdef DANAUS_WATCHDOG
        // For development: a dead pipeline fails instead of hanging.
        for (u32 tries = 0; !try_wait(parity); ++tries) {
            if (tries > (1u << 22)) __trap();
        }
#else
        while (!try_wait(parity)) {
        }
#endif
    }
};

// A run of mbarriers, 8 bytes apart.
struct BarrierArray {
    u32 address;

    DEVICE Barrier operator[](int index) const { return Barrier{address + 8u * static_cast<u32>(index)}; }
};

// Position in a ring of `kStages`: the stage and how often the ring has wrapped, as a parity.
template <int kStages>
struct Ring {
    int stage = 0;
    u32 wraps = 0;

    DEVICE u32 consumer() const { return wraps; }
    DEVICE u32 producer() const { return wraps ^ 1u; }

    DEVICE void advance() {
        if (++stage == kStages) {
            stage = 0;
            wraps ^= 1u;
        }
    }
};

// The same when one number counts the passes of several rings: the stage and parities of pass `index`.
template <int kStages>
struct RingAt {
    static_assert((kStages & (kStages - 1)) == 0, "a counted ring has a power of two of stages");
    u32 index;

    DEVICE u32 stage() const { return index % kStages; }
    DEVICE u32 consumer() const { return index / kStages % 2; }
    DEVICE u32 producer() const { return consumer() ^ 1u; }
};

// Makes initialised mbarriers visible to the copy engine and to the cluster.
DEVICE void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders this thread's ordinary writes to shared memory before later reads by the tensor cores and the
// copy engine. Every writing thread needs it, before the barrier that announces the data.
DEVICE void fence_shared_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same for global memory.
DEVICE void fence_global_for_async() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Named barriers; id 0 belongs to __syncthreads.
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Moves registers between warpgroups; has effect only under a register cap at kernel entry.
template <int kRegisters>
DEVICE void release_registers() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg takes multiples of 8 from 24 to 256");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
DEVICE void claim_registers() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg takes multiples of 8 from 24 to 256");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A counter in global memory that orders thread blocks: what a block wrote before `post` is seen by a
// block after `await`.
DEVICE void post(int* counter) { asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory"); }

DEVICE void await(const int* counter, int target) {
    int value;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    } while (value != target);
}

}  // namespace danaus

// Which tile a thread block works on next.
//
// Heads are cut into sections. Within a section tiles go by their order along the sequence, heads
// innermost: blocks that run at the same time share the operands that the L2 holds. Forward sections are
// heads whose keys and values fit the L2 together, and causal forward tiles go from the last, the longest,
// to the first, so that short tiles fill the gaps at the end. Blocks draw numbers from a ticket. Each
// block draws once for each tile it gets, so the draw number `tiles` is the last of the launch and sets
// the ticket back to 0: no launch has to clear it.
#pragma once

#include "attention/params.cuh"
#include "device/barrier.cuh"

namespace danaus::attention {

struct Tile {
    int order;  // of the section's tiles along the sequence
    int head;
    int batch;
    bool last_section;
};

DEVICE Tile tile_of(const Schedule& schedule, int heads, int batch, int number) {
    const int of_section = schedule.section * schedule.tiles_of_head;
    const int first = (number / of_section) * schedule.section, all = heads * batch;
    const int width = min(schedule.section, all - first);
    const int within = number % of_section;
    const int head = first + within % width;
    return {within / width, head % heads, head / heads, first + schedule.section >= all};
}

// The next number; at least `schedule.tiles` means there is none.
DEVICE int draw(const Schedule& schedule) {
    const int drawn = atomicAdd(schedule.ticket, 1);
    if (drawn == schedule.tiles - 1) *schedule.ticket = 0;
    return drawn + static_cast<int>(gridDim.x);
}

// Hands tile numbers from the producer thread to the consumer warps, two deep.
struct TileMail {
    static constexpr int kSlots = 2;
    u32 numbers;  // address of kSlots ints
    BarrierArray full;
    BarrierArray empty;
    Ring<kSlots> ring;

    DEVICE void send(int number) {
        empty[ring.stage].wait(ring.producer());
        asm volatile("st.shared.s32 [%0], %1;" ::"r"(numbers + 4u * ring.stage), "r"(number) : "memory");
        full[ring.stage].arrive();
        ring.advance();
    }

    DEVICE int receive() {
        full[ring.stage].wait(ring.consumer());
        int number;
        asm volatile("ld.shared.s32 %0, [%1];" : "=r"(number) : "r"(numbers + 4u * ring.stage) : "memory");
        __syncwarp();
        if (lane_index() == 0) empty[ring.stage].arrive();
        ring.advance();
        return number;
    }
};

}  // namespace danaus::attention

// What is computed, for all kernels of this folder: sizes, runs of tokens (sequences that never mix) and
// the chunks they are cut into. `cuda/params.rs` mirrors it field by field.
#pragma once

namespace danaus::ssd {

struct Run {
    long long start, length;
    long long initial, last;  // states it starts from and leaves; -1 for none
    long long first_chunk;
};

struct Problem {
    const Run* runs;       // null: every `seqlen` tokens are a run with a state of its own
    const int* chunk_run;  // run of every chunk; null likewise
    long long tokens, seqlen;
    int heads, groups, head_dim, d_state;
    int run_count, chunk_count;
    int chunk;  // tokens of a chunk, except for a run's last
};

struct Chunk {
    long long start;
    int rows;
};

__device__ __forceinline__ int chunks_of(const Problem& p, long long length) {
    return static_cast<int>((length + p.chunk - 1) / p.chunk);
}

__device__ __forceinline__ Run run_at(const Problem& p, int index) {
    if (p.runs) return p.runs[index];
    return Run{index * p.seqlen, p.seqlen, index, index, static_cast<long long>(index) * chunks_of(p, p.seqlen)};
}

__device__ __forceinline__ Chunk chunk_of(const Problem& p, const Run& run, long long index) {
    const long long offset = (index - run.first_chunk) * p.chunk, rest = run.length - offset;
    return Chunk{run.start + offset, static_cast<int>(rest < p.chunk ? rest : p.chunk)};
}

__device__ __forceinline__ Chunk chunk_at(const Problem& p, int index) {
    const int run = p.chunk_run ? p.chunk_run[index] : index / chunks_of(p, p.seqlen);
    return chunk_of(p, run_at(p, run), index);
}

// Where the three vectors of a head's chunk lie, each `chunk` long: sums of log2 decays from the chunk's
// start, this token included; scales; what a token leaves at the chunk's end, exp2(sum_end - sum) scale.
__device__ __forceinline__ long long steps_at(const Problem& p, int head, int chunk) {
    return (static_cast<long long>(head) * p.chunk_count + chunk) * 3 * p.chunk;
}

// Head's group.
__device__ __forceinline__ int group_of(const Problem& p, int head) { return head / (p.heads / p.groups); }

}  // namespace danaus::ssd

// Rows that move within the device's memory, and counts that start anew: where the KV store is coded, rows of the unit
// that is not whole yet wait there.

// Ranges of a launch at most.
#define RANGES_MAX 128

struct MoveParams {
    const uint4 *from[RANGES_MAX];
    uint4 *to[RANGES_MAX];
    u64 count; // of 16 bytes, of each range
};

// Grid (blocks of a range, ranges).
extern "C" __global__ void move_rows(const __grid_constant__ MoveParams p) {
    const uint4 *from = p.from[blockIdx.y];
    uint4 *to = p.to[blockIdx.y];
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += (u64)gridDim.x * blockDim.x) to[i] = from[i];
}

struct ClearParams {
    u32 *words;
    u32 count;
};

extern "C" __global__ void clear_words(const ClearParams p) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.words[i] = 0;
}

// What the prefill kernels share: the blocks of keys that a tile of query rows walks over, and a row's carried state.
//
// A walk is over the visible blocks of the past, then those of the step's own rows. A kernel brings its own struct for
// it, with these fields: `past` and `own`, the first block of each
// piece, from position 0 and from own_from; `past_blocks` and `blocks`, how many of the past and in all; blocks
// [`clear_from`, `clear_to`) but `ragged` need no mask.

struct Block {
    u64 start; // position of its first key
    int count;
};

// How many of `count` blocks from `first` on are before block `end`.
__device__ __forceinline__ int between(u64 end, u32 first, int count) {
    return end > first ? (int)least(end - first, count) : 0;
}

template <typename Walk>
__device__ __forceinline__ void find_walk(const AttendParams &p, u32 row, u32 rows, Walk &w) {
    u64 first = first_visible(p, position_of(p, row)), end = position_of(p, row + rows - 1) + 1;
    u32 past_end = (u32)((p.past_to + KEYS - 1) / KEYS);
    u32 own_end = (u32)((most(least(p.own_to, end), p.own_from) - p.own_from + KEYS - 1) / KEYS);
    w.past = (u32)(most(p.past_from, first) / KEYS);
    w.past_blocks = p.past_from < p.past_to && w.past < past_end ? past_end - w.past : 0;
    w.own = first > p.own_from ? (u32)((first - p.own_from) / KEYS) : 0;
    int own_blocks = w.own < own_end ? own_end - w.own : 0;
    w.blocks = w.past_blocks + own_blocks;
    Range seen = seen_by_all(p, row, rows);
    u64 own_seen = most(least(seen.to, p.own_to), p.own_from) - p.own_from;
    w.clear_from = between((seen.from + KEYS - 1) / KEYS, w.past, w.past_blocks) +
                   between((most(seen.from, p.own_from) - p.own_from + KEYS - 1) / KEYS, w.own, own_blocks);
    w.clear_to = w.past_blocks + between(own_seen / KEYS, w.own, own_blocks);
    w.ragged = p.past_to % KEYS ? w.past_blocks - 1 : -1;
}

template <typename Walk>
__device__ __forceinline__ Block block_of(const AttendParams &p, const Walk &w, int i) {
    Block b;
    bool past = i < w.past_blocks;
    b.start = (u64)(past ? w.past + i : w.own + (i - w.past_blocks)) * KEYS + (past ? 0 : p.own_from);
    b.count = (int)least(KEYS, (past ? p.past_to : p.own_to) - b.start);
    return b;
}

// A row of a lane: row `r` * 8 of 16, whose accumulator is spread as mma's c, N of eight columns.
template <int N>
__device__ __forceinline__ void load_row(const AttendParams &p, u32 row, float &max, float &sum, float (&acc)[N][4],
                                         int r) {
    int column = (threadIdx.x & 3) * 2;
    bool held = !p.first && row < p.rows;
    u64 at = (u64)blockIdx.y * p.rows + row;
    max = held ? p.state_max[at] : NEG_INFINITY;
    sum = held ? p.state_sum[at] : 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) {
        float2 x = make_float2(0.0f, 0.0f);
        if (held && n * 8 < HEAD_DIM) x = *(const float2 *)(p.state_acc + at * HEAD_DIM + n * 8 + column);
        acc[n][2 * r] = x.x;
        acc[n][2 * r + 1] = x.y;
    }
}

// Accumulator over sum, zeros for a row that saw nothing; or the state, where more keys follow.
template <int N>
__device__ __forceinline__ void store_row(const AttendParams &p, u32 row, float max, float sum, const float (&acc)[N][4],
                                          int r) {
    int column = (threadIdx.x & 3) * 2;
    if (p.last) {
        float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
        u64 head = p.out_column + ((u64)blockIdx.y * p.group + row % p.group) * HEAD_DIM;
        bf16 *to = p.out + row / p.group * p.out_stride + head + column;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            *(u32 *)(to + n * 8) = pack_bf16(acc[n][2 * r] * scale, acc[n][2 * r + 1] * scale);
        }
        return;
    }
    u64 at = (u64)blockIdx.y * p.rows + row;
    if (column == 0) {
        p.state_max[at] = max;
        p.state_sum[at] = sum;
    }
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        *(float2 *)(p.state_acc + at * HEAD_DIM + n * 8 + column) = make_float2(acc[n][2 * r], acc[n][2 * r + 1]);
    }
}

// Prefill attention: many query rows over the keys of each head, with carried state.
//
// A thread block takes WARPS * 16 rows of one head, a warp 16 of them, and walks the visible blocks of 64 keys. K and
// V of a block come by cp.async into shared memory, with STAGES = 2 one block ahead. Rows of shared memory are 16
// bytes longer than a head, which leaves ldmatrix free of bank conflicts for every head dimension. Query fragments
// stay in registers, or with QUERY_SHARED in shared memory, where the accumulator needs the registers (heads over
// 128). Uses what sm_80 has, no more.
//
// Per block of keys a warp does 4 * 16 * 64 * HEAD_DIM FLOP and reads 2 * 64 * HEAD_DIM elements of shared memory.

#define ROWS (WARPS * 16)
#define THREADS (WARPS * 32)
#define STRIDE (DIM_PADDED + 8)     // elements of a row in shared memory
#define TILE (KEYS * STRIDE)        // elements of K or V of one block
#define STEPS (DIM_PADDED / 16)

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes, or zeros where `inside` is false.
__device__ __forceinline__ void copy_async(bf16 *to, const bf16 *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ void load_matrices(u32 (&r)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(from)) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(from)) : "memory");
}

// `rows` rows of a head to shared memory; those from `count` on, and the padding of a row, become zeros.
template <int LINES>
__device__ __forceinline__ void load_rows(bf16 *to, const bf16 *from, int count) {
    constexpr int CHUNKS = DIM_PADDED / 8;
    for (int i = threadIdx.x; i < LINES * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        bool inside = row < count && column < HEAD_DIM;
        copy_async(to + row * STRIDE + column, inside ? from + row * HEAD_DIM + column : from, inside);
    }
}

// The visible blocks of a tile of rows: those of the past, then those of the step's own rows.
struct Walk {
    u64 past, own; // first block of each piece, from position 0 and from own_from
    int past_blocks, blocks;
};

struct Block {
    u64 start; // position of its first key
    int count;
};

__device__ __forceinline__ Walk walk_of(const AttendParams &p, u32 row) {
    u64 first = first_visible(p, position_of(p, row)), end = position_of(p, row + ROWS - 1) + 1;
    u64 past_end = (p.past_to + KEYS - 1) / KEYS;
    u64 own_end = (most(least(p.own_to, end), p.own_from) - p.own_from + KEYS - 1) / KEYS;
    Walk w;
    w.past = most(p.past_from, first) / KEYS;
    w.past_blocks = p.past_from < p.past_to && w.past < past_end ? (int)(past_end - w.past) : 0;
    w.own = first > p.own_from ? (first - p.own_from) / KEYS : 0;
    w.blocks = w.past_blocks + (w.own < own_end ? (int)(own_end - w.own) : 0);
    return w;
}

__device__ __forceinline__ Block block_of(const AttendParams &p, const Walk &w, int i) {
    Block b;
    bool past = i < w.past_blocks;
    b.start = past ? (w.past + i) * KEYS : p.own_from + (w.own + (i - w.past_blocks)) * KEYS;
    b.count = (int)least(KEYS, (past ? p.past_to : p.own_to) - b.start);
    return b;
}

__device__ __forceinline__ void load_block(const AttendParams &p, const Block &b, bf16 *k, bf16 *v) {
    u64 offset = (b.start - p.kv_start) * HEAD_DIM;
    load_rows<KEYS>(k, p.key[blockIdx.y] + offset, b.count);
    load_rows<KEYS>(v, p.value[blockIdx.y] + offset, b.count);
    copy_commit();
}

// A warp's queries as fragments: register i of step k.
struct Queries {
#if QUERY_SHARED
    const bf16 *from;
    __device__ __forceinline__ void get(u32 (&a)[4], int step) const { load_matrices(a, from + step * 16); }
#else
    u32 held[STEPS][4];
    __device__ __forceinline__ void get(u32 (&a)[4], int step) const {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = held[step][i];
    }
#endif
};

// Rows past the end repeat the last one: every row takes the same path, and theirs are not stored.
__device__ __forceinline__ void load_queries(const AttendParams &p, u32 tile_row, bf16 *shared, Queries &q) {
    const bf16 *head = p.query[blockIdx.y];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#if QUERY_SHARED
    for (int i = threadIdx.x; i < ROWS * (DIM_PADDED / 8); i += THREADS) {
        int row = i / (DIM_PADDED / 8), column = i % (DIM_PADDED / 8) * 8;
        u64 from = clamp_row(p, tile_row + row);
        bool inside = column < HEAD_DIM;
        copy_async(shared + row * STRIDE + column, inside ? head + from * HEAD_DIM + column : head, inside);
    }
    q.from = shared + (warp * 16 + (lane & 15)) * STRIDE + (lane >> 4) * 8;
#else
    u32 row = tile_row + warp * 16 + (lane >> 2);
    const bf16 *low = head + (u64)clamp_row(p, row) * HEAD_DIM;
    const bf16 *high = head + (u64)clamp_row(p, row + 8) * HEAD_DIM;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int column = step * 16 + (lane & 3) * 2;
        q.held[step][0] = *(const u32 *)(low + column);
        q.held[step][1] = *(const u32 *)(high + column);
        // The second half of the last step is padding when HEAD_DIM is no multiple of 16.
        bool inside = step * 16 + 8 < HEAD_DIM;
        q.held[step][2] = inside ? *(const u32 *)(low + column + 8) : 0;
        q.held[step][3] = inside ? *(const u32 *)(high + column + 8) : 0;
    }
#endif
}

__device__ __forceinline__ void scores(float (&s)[8][4], const Queries &q, const bf16 *k) {
    int lane = threadIdx.x & 31;
    // Matrices of an x4 load: keys 0-7 and 8-15 by the lane's upper half, dimensions 0-7 and 8-15 within it.
    const bf16 *from = k + ((lane >> 4) * 8 + (lane & 7)) * STRIDE + ((lane >> 3) & 1) * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 a[4];
        q.get(a, step);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            u32 b[4];
            load_matrices(b, from + pair * 16 * STRIDE + step * 16);
            mma(s[2 * pair], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma(s[2 * pair + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
}

__device__ __forceinline__ void weigh(float (&acc)[2 * STEPS][4], const float (&s)[8][4], const bf16 *v) {
    int lane = threadIdx.x & 31;
    // Matrices: keys 0-7 and 8-15 within the lane's upper half, dimensions 0-7 and 8-15 by it.
    const bf16 *from = v + (((lane >> 3) & 1) * 8 + (lane & 7)) * STRIDE + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float(&low)[4] = s[2 * k], (&high)[4] = s[2 * k + 1];
        u32 a0 = pack_bf16(low[0], low[1]), a1 = pack_bf16(low[2], low[3]);
        u32 a2 = pack_bf16(high[0], high[1]), a3 = pack_bf16(high[2], high[3]);
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            u32 b[4];
            load_matrices_transposed(b, from + k * 16 * STRIDE + n * 16);
            mma(acc[2 * n], a0, a1, a2, a3, b[0], b[1]);
            mma(acc[2 * n + 1], a0, a1, a2, a3, b[2], b[3]);
        }
    }
}

// A lane's part of the state of rows `row` and `row + 8`.
struct State {
    float max[2], sum[2];
    float acc[2 * STEPS][4];
};

__device__ __forceinline__ void load_state(const AttendParams &p, u32 row, State &state) {
    int column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool held = !p.first && row + 8 * r < p.rows;
        u64 at = (u64)blockIdx.y * p.rows + row + 8 * r;
        state.max[r] = held ? p.state_max[at] : NEG_INFINITY;
        state.sum[r] = held ? p.state_sum[at] : 0.0f;
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            float2 x = make_float2(0.0f, 0.0f);
            if (held && n * 8 < HEAD_DIM) x = *(const float2 *)(p.state_acc + at * HEAD_DIM + n * 8 + column);
            state.acc[n][2 * r] = x.x;
            state.acc[n][2 * r + 1] = x.y;
        }
    }
}

__device__ __forceinline__ void store_state(const AttendParams &p, u32 row, const State &state) {
    int column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + 8 * r >= p.rows) continue;
        u64 at = (u64)blockIdx.y * p.rows + row + 8 * r;
        if (column == 0) {
            p.state_max[at] = state.max[r];
            p.state_sum[at] = state.sum[r];
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            *(float2 *)(p.state_acc + at * HEAD_DIM + n * 8 + column) =
                make_float2(state.acc[n][2 * r], state.acc[n][2 * r + 1]);
        }
    }
}

// Accumulator over sum; zeros for a row that saw nothing.
__device__ __forceinline__ void store_out(const AttendParams &p, u32 row, const State &state) {
    int column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        u32 at = row + 8 * r;
        if (at >= p.rows) continue;
        float scale = state.sum[r] > 0.0f ? 1.0f / state.sum[r] : 0.0f;
        u64 head = p.out_column + ((u64)blockIdx.y * p.group + at % p.group) * HEAD_DIM;
        bf16 *to = p.out + at / p.group * p.out_stride + head + column;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            *(u32 *)(to + n * 8) = pack_bf16(state.acc[n][2 * r] * scale, state.acc[n][2 * r + 1] * scale);
        }
    }
}

__device__ __forceinline__ void attend_block(const AttendParams &p, u32 row, const Range &seen, const Block &b,
                                             const Queries &q, const bf16 *k, const bf16 *v, State &state) {
    float s[8][4];
    scores(s, q, k);
    if (!covers(seen, b.start, b.count)) {
        mask_scores(s, visible(p, row, b.start, b.count), visible(p, row + 8, b.start, b.count));
    }
    float2 shrink = softmax_block(s, state.max, state.sum, p.scale_log2);
    // Once the largest scores are known this changes nothing, for most blocks: a factor of 1 keeps every bit.
    if (__any_sync(0xffffffffu, shrink.x != 1.0f || shrink.y != 1.0f)) {
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            state.acc[n][0] *= shrink.x;
            state.acc[n][1] *= shrink.x;
            state.acc[n][2] *= shrink.y;
            state.acc[n][3] *= shrink.y;
        }
    }
    weigh(state.acc, s, v);
}

// Grid (tiles of rows, heads). The last tile sees most and starts first.
extern "C" __global__ void __launch_bounds__(THREADS, HEAD_DIM <= 64 ? 2 : 1)
attention_prefill(const __grid_constant__ AttendParams p) {
    extern __shared__ uint4 memory[];
    bf16 *tiles = (bf16 *)memory; // [STAGES][K | V][KEYS, STRIDE], then queries
    u32 tile_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    u32 row = tile_row + (threadIdx.x >> 5) * 16 + ((threadIdx.x & 31) >> 2);
    Walk walk = walk_of(p, tile_row);
    Range seen = seen_by_all(p, tile_row, ROWS);
    Queries q;
    load_queries(p, tile_row, tiles + STAGES * 2 * TILE, q);
    if (STAGES == 2 && walk.blocks > 0) load_block(p, block_of(p, walk, 0), tiles, tiles + TILE);
    State state;
    load_state(p, row, state);
    for (int i = 0; i < walk.blocks; i++) {
        Block block = block_of(p, walk, i);
        bf16 *k = tiles + (i % STAGES) * 2 * TILE;
        if (STAGES == 2) {
            copy_wait();
            // Block i has arrived, and everybody is done with the stage that block i + 1 goes to.
            __syncthreads();
            bf16 *next = tiles + ((i + 1) % STAGES) * 2 * TILE;
            if (i + 1 < walk.blocks) load_block(p, block_of(p, walk, i + 1), next, next + TILE);
        } else {
            __syncthreads();
            load_block(p, block, k, k + TILE);
            copy_wait();
            __syncthreads();
        }
        attend_block(p, row, seen, block, q, k, k + TILE, state);
    }
    if (p.last) {
        store_out(p, row, state);
    } else {
        store_state(p, row, state);
    }
}

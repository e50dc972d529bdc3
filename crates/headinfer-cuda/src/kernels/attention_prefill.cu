// Prefill attention: many query rows over the keys of each head, with carried state.
//
// A thread block takes ROWS rows of one head, a warp ROW_TILES * 16 of them, and walks the visible blocks of 64 keys.
// K and V come by cp.async into shared memory. With STAGES >= 2 whole blocks come STAGES - 1 ahead; with STAGES = 1 the
// next V comes while scores are formed and the next K while V is weighed. Rows of shared memory are 16 bytes longer
// than a head, which leaves ldmatrix free of bank conflicts for every head dimension. Query fragments stay in
// registers, or with QUERY_SHARED in shared memory. Uses what sm_80 has, no more. Each row sums in the same order
// however this is built: no choice changes a bit.
//
// Counts for a warp, one block of keys, d = HEAD_DIM and R = ROW_TILES, in cycles of a whole multiprocessor:
//   mma        R * d of m16n8k16, at 1024 FMA a cycle                     2 R d
//   ldmatrix   d / 4 for each of K and V, at 128 bytes a cycle            2 d, and with QUERY_SHARED R d / 4 more
//   exp2       R * 16 * 64, at 16 a cycle                                 64 R
//   cp.async   K and V for a whole thread block, at 64 bytes a cycle      4 d
// With R = 1 shared memory is as busy as the tensor cores; with R = 2 it is half as busy, and the accumulator and the
// scores take 32 (d / 16 + 2) of a lane's 255 registers: 192 at d = 128, too many beyond. Softmax has to run beside
// another warp's products: two warps to each scheduler, of two thread blocks that need not wait for one another.
//
// Tried on an H100, TFLOP/s at d = 128, chunks of 8192 rows of 4 query heads over 131072 keys of one KV head, and 32768
// causal rows of 32 query and 8 KV heads (attention-peers.txt beside the runs of that machine has today's, and flash's):
//   warps x R x stages  blocks   past   causal   expected
//   8 x 1 x 2             1       276     291    shared memory as busy as the tensor cores
//   4 x 1 x 2             2       281     273    the same, softmax beside products
//   4 x 2 x 2             2       359     362    half the shared memory's traffic: 1.3 of the first
//   4 x 2 x 1             2       376     376    slower than with two stages, it was thought; the second block hides it
//   8 x 2 x 2             1       375     389    as fast; 190 where 256-row tiles leave multiprocessors idle
//
// Without its loads of K and V the kernel is a quarter faster at d = 256 and an eighth at d = 128: they and ldmatrix go
// through one queue, and copies issued in one go hold up the first products. Given out over the steps of the scores, in
// one run in which power held the clock to 1.7 GHz: 332 to 361 at d = 128 (4 x 2 x 2, past), 286 to 319 at d = 256
// (8 x 1 x 2). Two warps to a row tile, each on half of the keys and then of V's columns with the weights exchanged
// through shared memory, need a quarter fewer ldmatrix at d = 256 and were no faster (306): their softmax stands alone.
//
// Past and own rows lie apart in memory. A block's address is its index times a constant from the piece's base, rather than
// made of its position: in turns with the kernel before, over 131072 past keys, 1.02 of its rate at d = 64, 1.05 at 96 and
// 0.99 at 128 and 256. Addresses made before the barrier instead of after it gained nothing more.

#define THREADS (WARPS * 32)
#define WARP_ROWS (ROW_TILES * 16)
#define ROWS (WARPS * WARP_ROWS)
#define STRIDE (DIM_PADDED * 2 + 16) // bytes of a row in shared memory
#define TILE (KEYS * STRIDE)         // bytes of K or V of one block
#define STEPS (DIM_PADDED / 16)
#define AHEAD (STAGES > 1 ? STAGES - 1 : 1) // blocks
#define SLACK 8.0f                          // a weight is at most 2^SLACK

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes.
__device__ __forceinline__ void copy_async(u32 to, const bf16 *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// 16 bytes, or zeros where `inside` is false.
__device__ __forceinline__ void copy_async(u32 to, const bf16 *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// All groups but the newest PENDING have arrived, for every thread.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
    __syncthreads();
}

__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

// Rows are copied by as many lines of threads as a power of two allows, a thread 16 bytes of every LINES-th row: its
// addresses differ by constants.
#define CHUNKS (DIM_PADDED / 8)
#define MANY(LINES) (THREADS / CHUNKS >= LINES)
#define LINES (MANY(64) ? 64 : MANY(32) ? 32 : MANY(16) ? 16 : MANY(8) ? 8 : 4)
#define PASSES (KEYS / LINES)

struct Place {
    int row, column;
    __device__ __forceinline__ Place() : row(threadIdx.x / CHUNKS), column(threadIdx.x % CHUNKS * 8) {}
    __device__ __forceinline__ bool copies() const { return THREADS == LINES * CHUNKS || row < LINES; }
};

// The rows of a block; those from `count` on and the padding become zeros.
__device__ __forceinline__ void load_keys(u32 to, const bf16 *from, int count) {
    Place at;
    if (!at.copies()) return;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        int row = at.row + pass * LINES;
        bool inside = row < count && at.column < HEAD_DIM;
        copy_async(to + row * STRIDE + at.column * 2, inside ? from + row * HEAD_DIM + at.column : from, inside);
    }
}

// Rows of K and V of one piece, as if it began with block 0 of the walk: a block's place follows from its index.
struct Piece {
    const bf16 *key;
    i64 apart; // V's rows from K's
};

// The visible blocks of a tile of rows: those of the past, then those of the step's own rows. Lies in the padding of
// some rows of shared memory, as registers are dear.
struct Walk {
    u32 past, own; // first block of each piece, from position 0 and from own_from
    int past_blocks, blocks;
    char row[DIM_PADDED * 2];
    int clear_from, clear_to;  // blocks [clear_from, clear_to) but a ragged one need no mask
    int ragged, own_ragged;    // the block of each piece that has fewer keys, or -1
    struct {
        char row[DIM_PADDED * 2];
        Piece piece;
    } kv[2]; // past, own

    __device__ __forceinline__ bool whole(int i) const {
        return HEAD_DIM == DIM_PADDED && i < blocks && i != ragged && i != own_ragged;
    }
    __device__ __forceinline__ const Piece &piece_of(int i) const { return kv[i >= past_blocks].piece; }
};

__device__ __forceinline__ void find_pieces(const AttendParams &p, Walk &w) {
    bool ragged = w.blocks > w.past_blocks && block_of(p, w, w.blocks - 1).count < KEYS;
    w.own_ragged = ragged ? w.blocks - 1 : -1;
    const bf16 *past = p.key[blockIdx.y] + ((u64)w.past * KEYS - p.past_from) * HEAD_DIM;
    const bf16 *own = p.own_key[blockIdx.y] + ((i64)w.own - w.past_blocks) * (KEYS * HEAD_DIM);
    w.kv[0].piece = {past, p.value[blockIdx.y] - p.key[blockIdx.y]};
    w.kv[1].piece = {own, p.own_value[blockIdx.y] - p.own_key[blockIdx.y]};
}

// Copies block i of K, of V, or of both at once, V a TILE after K; nothing past the last.
template <bool K, bool V>
__device__ __forceinline__ void copy_block(const AttendParams &p, const Walk &w, int i, u32 to) {
    if (i < w.blocks) {
        int count = block_of(p, w, i).count;
        const Piece &piece = w.piece_of(i);
        const bf16 *from = piece.key + (u64)i * (KEYS * HEAD_DIM);
        if (K) load_keys(to, from, count);
        if (V) load_keys(to + (K ? TILE : 0), from + piece.apart, count);
    }
}

template <bool K, bool V>
__device__ __forceinline__ void load_block(const AttendParams &p, const Walk &w, int i, u32 to) {
    copy_block<K, V>(p, w, i, to);
    copy_commit();
}

// Copies of block i of K, then of V, given out a few at a time: in one go they would hold up the ldmatrix behind them. A
// block that is not whole is left to `copy_block`.
struct Copies {
    u32 to;
    const bf16 *from;
    const Piece *piece;
    bool any, whole;

    __device__ __forceinline__ Copies(const Walk &w, int i, u32 tile) {
        Place at;
        whole = w.whole(i);
        any = whole && at.copies();
        piece = &w.piece_of(i);
        to = tile + at.row * STRIDE + at.column * 2;
        from = piece->key + (u64)i * (KEYS * HEAD_DIM) + (u32)(at.row * HEAD_DIM + at.column);
    }

    // Copy i of 2 * PASSES, in order.
    __device__ __forceinline__ void give(int i) {
        int row = i % PASSES * LINES;
        if (i == PASSES) from += piece->apart;
        if (any) copy_async(to + i / PASSES * TILE + row * STRIDE, from + row * HEAD_DIM);
    }
};

// A warp's queries as fragments, a row tile after another.
struct Queries {
#if QUERY_SHARED
    u32 from;
    __device__ __forceinline__ void get(u32 (&a)[4], int m, int step) const {
        load_matrices(a, from + m * 16 * STRIDE + step * 32);
    }
#else
    u32 held[ROW_TILES][STEPS][4];
    __device__ __forceinline__ void get(u32 (&a)[4], int m, int step) const {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = held[m][step][i];
    }
#endif
};

// Rows past the end repeat the last one: every row takes the same path, and theirs are not stored.
__device__ __forceinline__ void load_queries(const AttendParams &p, u32 tile_row, u32 shared, Queries &q) {
    const bf16 *head = p.query[blockIdx.y];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#if QUERY_SHARED
    for (int i = threadIdx.x; i < ROWS * (DIM_PADDED / 8); i += THREADS) {
        int row = i / (DIM_PADDED / 8), column = i % (DIM_PADDED / 8) * 8;
        u64 from = clamp_row(p, tile_row + row);
        bool inside = column < HEAD_DIM;
        copy_async(shared + row * STRIDE + column * 2, inside ? head + from * HEAD_DIM + column : head, inside);
    }
    q.from = shared + (warp * WARP_ROWS + (lane & 15)) * STRIDE + (lane >> 4) * 16;
#else
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
        u32 row = tile_row + warp * WARP_ROWS + m * 16 + (lane >> 2);
        const bf16 *low = head + (u64)clamp_row(p, row) * HEAD_DIM;
        const bf16 *high = head + (u64)clamp_row(p, row + 8) * HEAD_DIM;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            int column = step * 16 + (lane & 3) * 2;
            q.held[m][step][0] = *(const u32 *)(low + column);
            q.held[m][step][1] = *(const u32 *)(high + column);
            // The second half of the last step is padding when HEAD_DIM is no multiple of 16.
            bool inside = step * 16 + 8 < HEAD_DIM;
            q.held[m][step][2] = inside ? *(const u32 *)(low + column + 8) : 0;
            q.held[m][step][3] = inside ? *(const u32 *)(high + column + 8) : 0;
        }
    }
#endif
}

// A fragment of K serves every row tile of the warp. `between` is called after each step.
template <typename Between>
__device__ __forceinline__ void scores(float (&s)[ROW_TILES][8][4], const Queries &q, u32 k, Between between) {
    int lane = threadIdx.x & 31;
    // Matrices of an x4 load: keys 0-7 and 8-15 by the lane's upper half, dimensions 0-7 and 8-15 within it.
    u32 from = k + ((lane >> 4) * 8 + (lane & 7)) * STRIDE + ((lane >> 3) & 1) * 16;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
        for (int i = 0; i < 32; i++) s[m][i / 4][i % 4] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 a[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) q.get(a[m], m, step);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            u32 b[4];
            load_matrices(b, from + pair * 16 * STRIDE + step * 32);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma(s[m][2 * pair], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                mma(s[m][2 * pair + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
        between(step);
    }
}

// A lane's part of the state of two rows of each row tile, `row` and `row + 8`.
struct State {
    float max[ROW_TILES][2], sum[ROW_TILES][2];
    float acc[ROW_TILES][2 * STEPS][4];
};

// What is subtracted from a row's scores follows their maximum only when a weight would pass 2^SLACK. Nearly always
// nothing has to be rescaled then, and a factor of 1 keeps every bit: a row's result depends on its own scores alone.
__device__ __forceinline__ void follow_max(const float (&s)[ROW_TILES][8][4], State &state, float scale) {
    float largest[ROW_TILES * 2];
    bool raised = false;
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) {
        int m = i / 2, r = i % 2;
        largest[i] = s[m][0][2 * r];
#pragma unroll
        for (int j = 0; j < 8; j++) largest[i] = fmaxf(largest[i], fmaxf(s[m][j][2 * r], s[m][j][2 * r + 1]));
        largest[i] = quad_max(largest[i]);
        // False where the row has seen nothing yet and sees nothing now.
        bool raise = (largest[i] - state.max[m][r]) * scale > SLACK;
        largest[i] = raise ? largest[i] : state.max[m][r];
        raised |= raise;
    }
    if (!__any_sync(0xffffffffu, raised)) return;
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) {
        int m = i / 2, r = i % 2;
        float before = state.max[m][r];
        float shrink = before == largest[i] ? 1.0f : exp2_fast((before - largest[i]) * scale);
        state.max[m][r] = largest[i];
        state.sum[m][r] *= shrink;
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            state.acc[m][n][2 * r] *= shrink;
            state.acc[m][n][2 * r + 1] *= shrink;
        }
    }
}

// Scores to weights: a fragment of them for 16 keys, its sums added to `total`.
__device__ __forceinline__ void weights(u32 (&a)[4], const float (&low)[4], const float (&high)[4],
                                        const float (&offset)[2], float (&total)[2], float scale) {
    float w[8];
#pragma unroll
    for (int e = 0; e < 8; e++) {
        w[e] = exp2_fast(fmaf(e < 4 ? low[e] : high[e - 4], scale, -offset[e % 4 / 2]));
        total[e % 4 / 2] += w[e];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pack_bf16(w[2 * i], w[2 * i + 1]);
}

// The weights of the next 16 keys are formed while those of these are multiplied by V.
__device__ __forceinline__ void weigh(const float (&s)[ROW_TILES][8][4], u32 v, State &state, float scale) {
    int lane = threadIdx.x & 31;
    // Matrices: keys 0-7 and 8-15 within the lane's upper half, dimensions 0-7 and 8-15 by it.
    u32 from = v + (((lane >> 3) & 1) * 8 + (lane & 7)) * STRIDE + (lane >> 4) * 16;
    float offset[ROW_TILES][2], total[ROW_TILES][2] = {};
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) {
        // A row that has seen nothing: every weight is 2^-inf, whatever is subtracted.
        float max = state.max[i / 2][i % 2];
        offset[i / 2][i % 2] = max == NEG_INFINITY ? 0.0f : max * scale;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        u32 a[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) weights(a[m], s[m][2 * k], s[m][2 * k + 1], offset[m], total[m], scale);
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            u32 b[4];
            load_matrices_transposed(b, from + k * 16 * STRIDE + n * 32);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                mma(state.acc[m][2 * n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                mma(state.acc[m][2 * n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) state.sum[i / 2][i % 2] += quad_sum(total[i / 2][i % 2]);
}

// Grid (tiles of rows, heads). The last tile sees most and starts first. From block `wave` on the order is turned
// round: where two blocks share a multiprocessor and all start at once, those that see most meet those that see least.
__device__ __forceinline__ u32 tile_of(const AttendParams &p) {
    u32 before = blockIdx.y * gridDim.x, wave = p.wave > before ? p.wave - before : 0;
    return blockIdx.x < wave ? gridDim.x - 1 - blockIdx.x : blockIdx.x - wave;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
attention_prefill(const __grid_constant__ AttendParams p) {
    extern __shared__ uint4 memory[];
    u32 tiles = shared_address(memory); // [STAGES][K | V][KEYS, STRIDE], then queries
    u32 tile_row = tile_of(p) * ROWS;
    u32 row = tile_row + (threadIdx.x >> 5) * WARP_ROWS + ((threadIdx.x & 31) >> 2);
    // Used where it lies: a copy would read the rows between its fields, which others are filling by then.
    Walk &walk = *(Walk *)((char *)memory + DIM_PADDED * 2);
    if (threadIdx.x == 0) {
        find_walk(p, tile_row, ROWS, walk);
        find_pieces(p, walk);
    }
    __syncthreads();
    Queries q;
    load_queries(p, tile_row, tiles + STAGES * 2 * TILE, q);
    if (STAGES == 1) load_block<true, false>(p, walk, 0, tiles);
#pragma unroll
    for (int i = 0; i + 1 < STAGES; i++) load_block<true, true>(p, walk, i, tiles + i * 2 * TILE);
    State state;
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) load_row(p, row + i * 8, state.max[i / 2][i % 2], state.sum[i / 2][i % 2], state.acc[i / 2], i % 2);
    for (int i = 0; i < walk.blocks; i++) {
        u32 k = tiles + i % STAGES * 2 * TILE;
        float s[ROW_TILES][8][4];
        if (STAGES == 1) {
            copy_wait<0>(); // for K; everybody is done with the V before
            load_block<false, true>(p, walk, i, k + TILE);
            scores(s, q, k, [](int) {});
            copy_wait<0>(); // for V; everybody is done with K
            load_block<true, false>(p, walk, i + 1, k);
        } else {
            copy_wait<AHEAD - 1>(); // for block i; everybody is done with block i - 1
            u32 ahead = tiles + (i + AHEAD) % STAGES * 2 * TILE;
            Copies copies(walk, i + AHEAD, ahead);
            if (!copies.whole) copy_block<true, true>(p, walk, i + AHEAD, ahead);
            scores(s, q, k, [&](int step) {
#pragma unroll
                for (int i = step * 2 * PASSES / STEPS; i < (step + 1) * 2 * PASSES / STEPS; i++) {
                    copies.give(i);
                }
            });
            copy_commit();
        }
        if (i < walk.clear_from || i >= walk.clear_to || i == walk.ragged) {
            Block block = block_of(p, walk, i);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                u32 low = row + m * 16;
                mask_scores(s[m], visible(p, low, block.start, block.count),
                            visible(p, low + 8, block.start, block.count));
            }
        }
        follow_max(s, state, p.scale_log2);
        weigh(s, k + TILE, state, p.scale_log2);
    }
#pragma unroll
    for (int i = 0; i < ROW_TILES * 2; i++) {
        if (row + i * 8 >= p.rows) continue;
        store_row(p, row + i * 8, state.max[i / 2][i % 2], state.sum[i / 2][i % 2], state.acc[i / 2], i % 2);
    }
}

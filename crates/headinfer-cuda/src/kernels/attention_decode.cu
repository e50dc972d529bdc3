// Decode attention: few query rows, so reading the keys once is the cost.
//
// Keys are cut at absolute multiples of SPLIT positions (and where a piece ends). A thread block takes one split of
// one head for 16 rows; each of its warps takes 64 keys, and the warps' states are merged in order of position. A
// second kernel folds the splits into the carried state, again in order: no bit depends on how splits were spread
// over launches, tiles or ring slots.
//
// A row has the bits that it would have in a step of its own: all keys before it are the past piece, own rows of the
// step too, which are read where they lie; itself alone is the own piece.
//
// K and V go from memory to registers as 16 bytes a lane. The order of a head's elements within a product is free as
// long as both sides agree, so lane t of a quad takes eight neighbouring dimensions of K (and Q) where the fragment
// has pairs, and V's columns are dealt out so that a lane's eight neighbours are eight columns of the output.
//
// SPLIT is defined by whoever compiles this.

#define WARPS (SPLIT / KEYS)
#define ROWS 16
#define CHUNKS ((HEAD_DIM + 31) / 32) // of 32 dimensions of K
#define BANDS ((HEAD_DIM + 63) / 64)  // of 64 dimensions of V

__device__ __forceinline__ uint4 load_or_zero(const bf16 *from, bool inside) {
    return inside ? __ldg((const uint4 *)from) : make_uint4(0, 0, 0, 0);
}

// Keys [from, to) of one split of a piece, as positions; empty past the last.
struct Split {
    u64 from, to;
    bool past;
};

__device__ __forceinline__ Split split_of(const AttendParams &p, u64 index) {
    u64 first = p.past_from / SPLIT, past_splits = (p.past_to + SPLIT - 1) / SPLIT - first;
    if (p.past_from >= p.past_to) past_splits = 0;
    Split split;
    split.past = index < past_splits;
    u64 from = split.past ? p.past_from : p.own_from, to = split.past ? p.past_to : p.own_to;
    u64 cut = split.past ? first + index : p.own_from / SPLIT + (index - past_splits);
    split.from = most(from, cut * SPLIT);
    split.to = least(to, (cut + 1) * SPLIT);
    return split;
}

// 64 keys (or values) of which those past the first `old` are own rows of the step. Both are counted from the first.
struct Rows {
    const bf16 *past, *own;
    int old;

    __device__ __forceinline__ const bf16 *at(int key) const { return (key < old ? past : own) + (i64)key * HEAD_DIM; }
};

__device__ __forceinline__ Rows rows_of(const AttendParams &p, const bf16 *past, const bf16 *own, u64 start) {
    Rows rows;
    rows.past = past + (i64)(start - p.past_from) * HEAD_DIM;
    rows.own = own + ((i64)start - (i64)p.q_start) * HEAD_DIM;
    rows.old = start < p.q_start ? (int)least(p.q_start - start, KEYS) : 0;
    return rows;
}

// Keys of 64 that a row sees: of the past piece those before it, of the own piece itself.
__device__ __forceinline__ Visible seen_of(const AttendParams &p, u32 row, bool past, u64 start, int count) {
    u64 position = position_of(p, row), first = past ? first_visible(p, position) : position;
    u64 end = past ? position : position + 1;
    Visible v;
    v.from = first > start ? (int)least(first - start, KEYS) : 0;
    v.to = end > start ? (int)least(end - start, (u64)count) : 0;
    return v;
}

// scores of 16 rows by 64 keys. Fragment k-slots hold dimensions 8t, 8t+1 | 8t+2, 8t+3 of a chunk, then 8t+4 … 8t+7.
__device__ __forceinline__ void scores(float (&s)[8][4], const bf16 *low, const bf16 *high, const Rows &keys, int count) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    uint4 q_low[CHUNKS], q_high[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int column = c * 32 + t * 8;
        q_low[c] = load_or_zero(low + column, column < HEAD_DIM);
        q_high[c] = load_or_zero(high + column, column < HEAD_DIM);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
        int key = j * 8 + g;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int column = c * 32 + t * 8;
            uint4 k = load_or_zero(keys.at(key) + column, key < count && column < HEAD_DIM);
            mma(s[j], q_low[c].x, q_high[c].x, q_low[c].y, q_high[c].y, k.x, k.y);
            mma(s[j], q_low[c].z, q_high[c].z, q_low[c].w, q_high[c].w, k.z, k.w);
        }
    }
}

// Scores of two rows become weights, with their largest score and their sum.
__device__ __forceinline__ void softmax(float (&s)[8][4], float (&max)[2], float (&sum)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = s[0][2 * r];
#pragma unroll
        for (int j = 0; j < 8; j++) largest = fmaxf(largest, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        max[r] = quad_max(largest);
        // A row that has seen nothing: every weight is 2^-inf, whatever is subtracted.
        float offset = max[r] == NEG_INFINITY ? 0.0f : max[r] * scale;
        float total = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                s[j][e] = exp2_fast(fmaf(s[j][e], scale, -offset));
                total += s[j][e];
            }
        }
        sum[r] = quad_sum(total);
    }
}

// The lower (or upper) halves of two registers: element 2i (or 2i + 1) of two rows, as a pair along the keys.
__device__ __forceinline__ u32 lower_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 upper_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// acc += weights · V over 64 keys. Tile band * 8 + j of acc: column x is dimension band * 64 + x * 8 + j.
__device__ __forceinline__ void weigh(float (&acc)[BANDS * 8][4], const float (&s)[8][4], const Rows &values, int count) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float(&low)[4] = s[2 * k], (&high)[4] = s[2 * k + 1];
        u32 a0 = pack_bf16(low[0], low[1]), a1 = pack_bf16(low[2], low[3]);
        u32 a2 = pack_bf16(high[0], high[1]), a3 = pack_bf16(high[2], high[3]);
        int key = k * 16 + 2 * t;
#pragma unroll
        for (int band = 0; band < BANDS; band++) {
            int column = band * 64 + g * 8;
            u32 v[4][4]; // keys 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = key + (i & 1) + (i >> 1) * 8;
                uint4 x = load_or_zero(values.at(at) + column, at < count && column < HEAD_DIM);
                v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
            }
#pragma unroll
            for (int w = 0; w < 4; w++) {
                mma(acc[band * 8 + 2 * w], a0, a1, a2, a3, lower_halves(v[0][w], v[1][w]),
                    lower_halves(v[2][w], v[3][w]));
                mma(acc[band * 8 + 2 * w + 1], a0, a1, a2, a3, upper_halves(v[0][w], v[1][w]),
                    upper_halves(v[2][w], v[3][w]));
            }
        }
    }
}

// States of the warps of a block.
struct Shared {
    float max[WARPS][ROWS], sum[WARPS][ROWS];
    float acc[WARPS][ROWS][HEAD_DIM];
};

__device__ __forceinline__ void share(Shared &shared, const float (&max)[2], const float (&sum)[2],
                                      const float (&acc)[BANDS * 8][4]) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (t == 0) {
            shared.max[warp][g + 8 * r] = max[r];
            shared.sum[warp][g + 8 * r] = sum[r];
        }
#pragma unroll
        for (int n = 0; n < BANDS * 8; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int column = n / 8 * 64 + (2 * t + e) * 8 + n % 8;
                if (column < HEAD_DIM) shared.acc[warp][g + 8 * r][column] = acc[n][2 * r + e];
            }
        }
    }
}

// Merges the warps' states in order and writes the split's.
__device__ __forceinline__ void store_partial(const AttendParams &p, const Shared &shared, u32 tile_row, float *to) {
    for (int i = threadIdx.x; i < ROWS * HEAD_DIM; i += blockDim.x) {
        int row = i / HEAD_DIM, column = i % HEAD_DIM;
        if (tile_row + row >= p.rows) break;
        float largest = NEG_INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, shared.max[w][row]);
        float sum = 0.0f, acc = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float max = shared.max[w][row];
            float factor = max == NEG_INFINITY ? 0.0f : exp2_fast((max - largest) * p.scale_log2);
            sum = fmaf(shared.sum[w][row], factor, sum);
            acc = fmaf(shared.acc[w][row][column], factor, acc);
        }
        if (column == 0) {
            to[tile_row + row] = largest;
            to[p.rows + tile_row + row] = sum;
        }
        to[2 * p.rows + (u64)(tile_row + row) * HEAD_DIM + column] = acc;
    }
}

// Grid (splits * row_tiles, heads): tiles of one split run together and find its keys in the cache.
extern "C" __global__ void __launch_bounds__(WARPS * 32, HEAD_DIM <= 64 ? 3 : 1) attention_decode(const __grid_constant__ AttendParams p) {
    let_next_start();
    await_previous();
    extern __shared__ float memory[];
    Shared &shared = *(Shared *)memory;
    u32 split = blockIdx.x / p.row_tiles, tile_row = blockIdx.x % p.row_tiles * ROWS;
    u32 row = tile_row + ((threadIdx.x & 31) >> 2);
    Split keys = split_of(p, (u64)p.first_split + split);
    u64 start = keys.from + (threadIdx.x >> 5) * KEYS;
    int count = start < keys.to ? (int)least(KEYS, keys.to - start) : 0;
    u32 head = blockIdx.y;
    float max[2] = {NEG_INFINITY, NEG_INFINITY}, sum[2] = {0.0f, 0.0f};
    float s[8][4] = {};
    if (count > 0) {
        const bf16 *q = p.query[head];
        scores(s, q + (u64)clamp_row(p, row) * HEAD_DIM, q + (u64)clamp_row(p, row + 8) * HEAD_DIM,
               rows_of(p, p.key[head], p.own_key[head], start), count);
        Range seen = seen_by_all(p, tile_row, ROWS);
        seen.to--;
        if (!keys.past || !covers(seen, start, count)) {
            mask_scores(s, seen_of(p, row, keys.past, start, count), seen_of(p, row + 8, keys.past, start, count));
        }
        softmax(s, max, sum, p.scale_log2);
    }
    float acc[BANDS * 8][4] = {};
    weigh(acc, s, rows_of(p, p.value[head], p.own_value[head], start), count);
    share(shared, max, sum, acc);
    __syncthreads();
    u64 partial = (u64)p.rows * (HEAD_DIM + 2);
    store_partial(p, shared, tile_row, p.partials + ((u64)blockIdx.y * p.splits + split) * partial);
}

// Splits whose factors are formed at once.
#define MERGED 64

// Folds the launch's splits into the carried state, or with `first` into an empty one. Grid (rows, heads), a thread
// per dimension; every thread keeps the sum.
extern "C" __global__ void attention_merge(const __grid_constant__ AttendParams p) {
    let_next_start();
    await_previous();
    __shared__ float max[MERGED], sum[MERGED], keep[MERGED], add[MERGED];
    u32 row = blockIdx.x, column = threadIdx.x;
    bool inside = column < HEAD_DIM;
    u64 at = (u64)blockIdx.y * p.rows + row, partial = (u64)p.rows * (HEAD_DIM + 2);
    const float *from = p.partials + (u64)blockIdx.y * p.splits * partial;
    float state_max = p.first ? NEG_INFINITY : p.state_max[at];
    float state_sum = p.first ? 0.0f : p.state_sum[at];
    float acc = p.first || !inside ? 0.0f : p.state_acc[at * HEAD_DIM + column];
    for (u32 begin = 0; begin < p.splits; begin += MERGED) {
        int count = (int)least(MERGED, p.splits - begin);
        const float *chunk = from + begin * partial;
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            max[i] = chunk[i * partial + row];
            sum[i] = chunk[i * partial + p.rows + row];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            float before = state_max;
            for (int j = 0; j < i; j++) before = fmaxf(before, max[j]);
            float now = fmaxf(before, max[i]);
            keep[i] = before == now ? 1.0f : exp2_fast((before - now) * p.scale_log2);
            add[i] = max[i] == NEG_INFINITY ? 0.0f : exp2_fast((max[i] - now) * p.scale_log2);
        }
        __syncthreads();
        const float *values = chunk + 2 * p.rows + (u64)row * HEAD_DIM + column;
#pragma unroll 16
        for (int i = 0; i < count; i++) {
            float value = inside ? values[i * partial] : 0.0f;
            // A split that adds nothing changes no bit, not even the sign of a zero.
            if (add[i] == 0.0f) continue;
            state_sum = fmaf(state_sum, keep[i], sum[i] * add[i]);
            acc = fmaf(acc, keep[i], value * add[i]);
        }
        for (int i = 0; i < count; i++) state_max = fmaxf(state_max, max[i]);
        __syncthreads();
    }
    if (p.last) {
        float scale = state_sum > 0.0f ? 1.0f / state_sum : 0.0f;
        u64 head = p.out_column + ((u64)blockIdx.y * p.group + row % p.group) * HEAD_DIM;
        if (inside) p.out[row / p.group * p.out_stride + head + column] = to_bf16(acc * scale);
        return;
    }
    if (inside) p.state_acc[at * HEAD_DIM + column] = acc;
    if (column == 0) {
        p.state_max[at] = state_max;
        p.state_sum[at] = state_sum;
    }
}

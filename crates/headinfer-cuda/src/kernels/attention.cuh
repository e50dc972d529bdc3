// What prefill and decode attention share: parameters, the mask, reductions over a row.
//
// A step's keys come in pieces: the past, cut at absolute multiples of KEYS, and the step's own rows, cut at
// multiples of KEYS from their first. The running (max, sum, accumulator) is updated once a block, in order, whoever
// holds the block and however many calls the pieces are spread over: carrying the state through memory changes no
// bit. max is a raw score, before scaling; prefill's may lag behind the largest one seen (see there).
//
// HEAD_DIM, a multiple of 8 up to 256, is defined by whoever compiles this; KEYS too, where it is not 64.

#ifndef KEYS
#define KEYS 64
#endif
#define DIM_PADDED ((HEAD_DIM + 15) / 16 * 16)

#ifdef TENSOR_MAPS
// What the driver made of a tensor's shape; see PTX, "tensor map".
struct alignas(64) TensorMap {
    u64 opaque[16];
};
#endif

struct AttendParams {
#ifdef TENSOR_MAPS
    TensorMap query;                // [heads][rows][HEAD_DIM]
    TensorMap past_key, past_value; // [heads][keys][HEAD_DIM], row 0 at position past_from
    TensorMap own_key, own_value;   // row 0 at position own_from
#else
    const bf16 *query[HEADS_MAX]; // per head [rows, HEAD_DIM], row = token * group + query head
    const bf16 *key[HEADS_MAX];   // per head, the past piece's, row 0 at position past_from
    const bf16 *value[HEADS_MAX];
    const bf16 *own_key[HEADS_MAX]; // per head, the own piece's, row 0 at position own_from
    const bf16 *own_value[HEADS_MAX];
#endif
    float *state_max, *state_sum; // [heads, rows]
    float *state_acc;             // [heads, rows, HEAD_DIM]
    float *partials;              // decode: [heads, splits of the launch] of max [rows], sum [rows], acc [rows, HEAD_DIM]
    bf16 *out;                    // [tokens, out_stride], used with `last`
    u64 q_start;                  // position of the first query token
    u64 past_from, past_to;       // positions of the past piece, empty when equal
    u64 own_from, own_to;         // positions of the own piece, likewise
    u64 window;                   // a query at t sees keys in (t - window, t]; 0 sees all
    u64 out_stride;               // columns of out
    u64 out_column;               // of the launch's first query head
    u32 rows;                     // tokens * group
    u32 group;
    u32 first_split, splits; // decode: of all splits of the pieces, those of this launch
    u32 row_tiles;           // decode: tiles of 16 rows
    u32 wave;                // prefill: blocks after which the order of tiles turns round
    u32 first;               // start from an empty state
    u32 last;                // normalise and write out
    float scale_log2;        // log2(e) / sqrt(HEAD_DIM)
};

__device__ __forceinline__ u64 least(u64 a, u64 b) { return a < b ? a : b; }
__device__ __forceinline__ u64 most(u64 a, u64 b) { return a > b ? a : b; }

__device__ __forceinline__ u32 clamp_row(const AttendParams &p, u32 row) { return row < p.rows ? row : p.rows - 1; }

__device__ __forceinline__ u64 position_of(const AttendParams &p, u32 row) {
    return p.q_start + clamp_row(p, row) / p.group;
}

// First position that a query at `position` sees.
__device__ __forceinline__ u64 first_visible(const AttendParams &p, u64 position) {
    return p.window && position + 1 > p.window ? position + 1 - p.window : 0;
}

// Keys of a block that one row sees, as [from, to) within the block.
struct Visible {
    int from, to;
};

__device__ __forceinline__ Visible visible(const AttendParams &p, u32 row, u64 start, int count) {
    u64 position = position_of(p, row), first = first_visible(p, position);
    Visible v;
    v.from = first > start ? (int)least(first - start, KEYS) : 0;
    v.to = position + 1 > start ? (int)least(position + 1 - start, (u64)count) : 0;
    return v;
}

// Positions that every row of [row, row + rows) sees.
struct Range {
    u64 from, to;
};

__device__ __forceinline__ Range seen_by_all(const AttendParams &p, u32 row, u32 rows) {
    Range seen;
    seen.from = first_visible(p, position_of(p, row + rows - 1));
    seen.to = position_of(p, row) + 1;
    return seen;
}

__device__ __forceinline__ bool covers(const Range &seen, u64 start, int count) {
    return count == KEYS && seen.from <= start && start + KEYS <= seen.to;
}

// Of 16 rows by KEYS, a warp's lane holds rows g and g + 8 and of every eight keys 2t and 2t + 1.
__device__ __forceinline__ void mask_scores(float (&s)[KEYS / 8][4], Visible low, Visible high) {
    int t = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int key = j * 8 + t + e;
            if (key < low.from || key >= low.to) s[j][e] = NEG_INFINITY;
            if (key < high.from || key >= high.to) s[j][2 + e] = NEG_INFINITY;
        }
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

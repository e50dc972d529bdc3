// Takes a fused projection apart: each head's columns, with their bias, normalised where the model does, rotated,
// and put where attention reads them.

struct ProjectParams {
    const bf16 *from;                   // [rows, width]: all query heads, then keys, then values
    const float *cos, *sin;             // [rows, head_dim / 2]
    const bf16 *q_bias, *k_bias, *v_bias; // one element a column, or null
    const bf16 *q_norm, *k_norm;        // [head_dim], or null
    bf16 *query[HEADS_MAX];             // per KV head [rows, group, head_dim]
    bf16 *key[HEADS_MAX];               // per KV head [rows, head_dim]
    bf16 *value[HEADS_MAX];             // the same
    u32 width, group;
    u32 kv_heads;   // of the model
    u32 first_head; // KV head of query[0]
    u32 heads;      // KV heads of this launch
    float eps;
};

#define HALF_HEAD (HEAD_DIM / 2)
// Elements of half a head that a thread takes, and heads of which it has the loads under way together.
#define TAKEN (HEAD_DIM % 16 ? 4 : 8)
#define AT_ONCE 4
#define THREADS 128
// Heads that a block takes beside one another: what threads are left over does nothing.
#define PER_HEAD (HALF_HEAD / TAKEN)
#define BESIDE (THREADS / PER_HEAD)

// A head of a row: where it comes from, where it goes, and what is done on the way.
struct Head {
    const bf16 *from, *bias, *norm; // the last two null where there is nothing to add or to multiply by
    bf16 *to;
    bool rotated;
};

__device__ __forceinline__ Head head_of(const ProjectParams &p, u64 row, u32 unit) {
    const u32 d = HEAD_DIM;
    u32 queries = p.heads * p.group, q_dim = p.kv_heads * p.group * d;
    if (unit < queries) {
        u32 kv = unit / p.group, column = (p.first_head * p.group + unit) * d;
        return {p.from + row * p.width + column, p.q_bias ? p.q_bias + column : nullptr, p.q_norm,
                p.query[kv] + (row * p.group + unit - kv * p.group) * d, true};
    }
    bool is_value = unit >= queries + p.heads;
    u32 kv = unit - queries - (is_value ? p.heads : 0), column = (p.first_head + kv) * d;
    u32 begin = q_dim + (is_value ? p.kv_heads * d : 0);
    const bf16 *bias = is_value ? p.v_bias : p.k_bias;
    return {p.from + row * p.width + begin + column, bias ? bias + column : nullptr,
            is_value ? nullptr : p.k_norm, (is_value ? p.value[kv] : p.key[kv]) + row * d, !is_value};
}

// What a warp multiplies a head by: its sum has one order, whatever else the threads do.
__device__ __forceinline__ float norm_scale(const Head &h, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (u32 k = 0; k < (HALF_HEAD + 31) / 32; k++) {
        u32 i = (threadIdx.x & 31) + 32 * k;
        if (i >= HALF_HEAD) continue;
        float low = from_bf16(h.from[i]), high = from_bf16(h.from[HALF_HEAD + i]);
        if (h.bias) {
            low += from_bf16(h.bias[i]);
            high += from_bf16(h.bias[HALF_HEAD + i]);
        }
        squares += low * low + high * high;
    }
    return 1.0f / sqrtf(warp_sum(squares) / (float)HEAD_DIM + eps);
}

// What a thread takes of half a head, as it lies in memory: one load, one store.
struct alignas(TAKEN * 2) Pairs {
    u32 two[TAKEN / 2];
};

__device__ __forceinline__ Pairs load(const bf16 *from) { return *(const Pairs *)from; }

__device__ __forceinline__ void widen(float (&x)[TAKEN], const Pairs &pairs) {
#pragma unroll
    for (int k = 0; k < TAKEN / 2; k++) x[2 * k] = low_bf16(pairs.two[k]), x[2 * k + 1] = high_bf16(pairs.two[k]);
}

__device__ __forceinline__ void add_bias_to(float (&x)[TAKEN], const bf16 *from) {
    float y[TAKEN];
    widen(y, load(from));
#pragma unroll
    for (int k = 0; k < TAKEN; k++) x[k] += y[k];
}

__device__ __forceinline__ void scale_by(float (&x)[TAKEN], float scale, const bf16 *from) {
    float y[TAKEN];
    widen(y, load(from));
#pragma unroll
    for (int k = 0; k < TAKEN; k++) x[k] *= scale * y[k];
}

__device__ __forceinline__ void rotate(
    float (&low)[TAKEN], float (&high)[TAKEN], const float (&cos)[TAKEN], const float (&sin)[TAKEN]) {
#pragma unroll
    for (int k = 0; k < TAKEN; k++) {
        float a = low[k], b = high[k], c = cos[k], s = sin[k];
        low[k] = a * c - b * s;
        high[k] = b * c + a * s;
    }
}

__device__ __forceinline__ void store(bf16 *to, const float (&x)[TAKEN]) {
    Pairs pairs;
#pragma unroll
    for (int k = 0; k < TAKEN / 2; k++) pairs.two[k] = pack_bf16(x[2 * k], x[2 * k + 1]);
    *(Pairs *)to = pairs;
}

// A row of the grid's blocks is a row, which they share out by heads: a kernel of few rows has more of them.
// Neighbouring threads take neighbouring elements of a head, from both of its halves, and the angles they need serve
// all its heads. Heads count all query heads, then keys, then values, of this launch's KV heads.
extern "C" __global__ void project(const __grid_constant__ ProjectParams p) {
    let_next_start();
    await_previous();
    __shared__ float scales[BESIDE * AT_ONCE];
    u64 row = blockIdx.x;
    u32 units = p.heads * (p.group + 2), share = (units + gridDim.y - 1) / gridDim.y;
    u32 end = min((blockIdx.y + 1) * share, units);
    u32 mine = threadIdx.x / PER_HEAD, at = threadIdx.x % PER_HEAD * TAKEN;
    bool idle = mine >= BESIDE;
    float cos[TAKEN], sin[TAKEN];
#pragma unroll
    for (int k = 0; k < TAKEN; k += 4) {
        float4 c = *(const float4 *)(p.cos + row * HALF_HEAD + at + k);
        float4 s = *(const float4 *)(p.sin + row * HALF_HEAD + at + k);
        cos[k] = c.x, cos[k + 1] = c.y, cos[k + 2] = c.z, cos[k + 3] = c.w;
        sin[k] = s.x, sin[k + 1] = s.y, sin[k + 2] = s.z, sin[k + 3] = s.w;
    }
    for (u32 first = blockIdx.y * share; first < end; first += BESIDE * AT_ONCE) {
        Pairs lows[AT_ONCE], highs[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            u32 unit = first + k * BESIDE + mine;
            if (idle || unit >= end) continue;
            const bf16 *from = head_of(p, row, unit).from + at;
            lows[k] = load(from), highs[k] = load(from + HALF_HEAD);
        }
        if (p.q_norm || p.k_norm) {
            __syncthreads(); // the scales of the pass before are no longer read
            for (u32 i = threadIdx.x >> 5; i < BESIDE * AT_ONCE && first + i < end; i += THREADS / 32) {
                Head h = head_of(p, row, first + i);
                float scale = h.norm ? norm_scale(h, p.eps) : 1.0f;
                if ((threadIdx.x & 31) == 0) scales[i] = scale;
            }
            __syncthreads();
        }
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            u32 i = k * BESIDE + mine;
            if (idle || first + i >= end) continue;
            Head h = head_of(p, row, first + i);
            float low[TAKEN], high[TAKEN];
            widen(low, lows[k]), widen(high, highs[k]);
            if (h.bias) add_bias_to(low, h.bias + at), add_bias_to(high, h.bias + HALF_HEAD + at);
            if (h.norm) scale_by(low, scales[i], h.norm + at), scale_by(high, scales[i], h.norm + HALF_HEAD + at);
            if (h.rotated) rotate(low, high, cos, sin);
            store(h.to + at, low);
            store(h.to + HALF_HEAD + at, high);
        }
    }
}

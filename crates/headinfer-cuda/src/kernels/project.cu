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
    u32 width, head_dim, group;
    u32 kv_heads;   // of the model
    u32 first_head; // KV head of query[0]
    u32 heads;      // KV heads of this launch
    float eps;
};

// Elements of half a head that one lane holds.
#define PER_LANE 4

struct Half {
    float low[PER_LANE], high[PER_LANE];
};

__device__ __forceinline__ void load_head(Half &x, const bf16 *from, const bf16 *bias, u32 half) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (u32 k = 0; k < PER_LANE; k++) {
        u32 i = lane + 32 * k;
        bool inside = i < half;
        x.low[k] = inside ? from_bf16(from[i]) : 0.0f;
        x.high[k] = inside ? from_bf16(from[half + i]) : 0.0f;
        if (inside && bias) {
            x.low[k] += from_bf16(bias[i]);
            x.high[k] += from_bf16(bias[half + i]);
        }
    }
}

__device__ __forceinline__ void norm_head(Half &x, const bf16 *weight, u32 half, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (u32 k = 0; k < PER_LANE; k++) squares += x.low[k] * x.low[k] + x.high[k] * x.high[k];
    float scale = 1.0f / sqrtf(warp_sum(squares) / (float)(2 * half) + eps);
#pragma unroll
    for (u32 k = 0; k < PER_LANE; k++) {
        u32 i = (threadIdx.x & 31) + 32 * k;
        if (i < half) {
            x.low[k] *= scale * from_bf16(weight[i]);
            x.high[k] *= scale * from_bf16(weight[half + i]);
        }
    }
}

__device__ __forceinline__ void rotate_head(Half &x, const float *cos, const float *sin, u32 half) {
#pragma unroll
    for (u32 k = 0; k < PER_LANE; k++) {
        u32 i = (threadIdx.x & 31) + 32 * k;
        if (i < half) {
            float a = x.low[k], b = x.high[k], c = cos[i], s = sin[i];
            x.low[k] = a * c - b * s;
            x.high[k] = b * c + a * s;
        }
    }
}

__device__ __forceinline__ void store_head(const Half &x, bf16 *to, u32 half) {
#pragma unroll
    for (u32 k = 0; k < PER_LANE; k++) {
        u32 i = (threadIdx.x & 31) + 32 * k;
        if (i < half) {
            to[i] = to_bf16(x.low[k]);
            to[half + i] = to_bf16(x.high[k]);
        }
    }
}

// A warp per row and head; grid (rows, warps of heads). Heads count all query heads, then keys, then values, of
// this launch's KV heads.
extern "C" __global__ void project(const __grid_constant__ ProjectParams p) {
    let_next_start();
    await_previous();
    u64 row = blockIdx.x;
    u32 unit = blockIdx.y * (blockDim.x >> 5) + (threadIdx.x >> 5);
    u32 queries = p.heads * p.group, d = p.head_dim, half = d / 2;
    if (unit >= queries + 2 * p.heads) return;
    bool is_query = unit < queries, is_value = unit >= queries + p.heads;
    u32 kv = is_query ? unit / p.group : (unit - queries) % p.heads; // within the launch
    u32 head = p.first_head + kv, q = unit % p.group;
    u32 q_dim = p.kv_heads * p.group * d;
    // Column within its own projection, where that begins, and where the head goes.
    u32 column = (is_query ? head * p.group + q : head) * d;
    u32 begin = is_query ? 0 : q_dim + (is_value ? p.kv_heads * d : 0);
    const bf16 *bias = is_query ? p.q_bias : is_value ? p.v_bias : p.k_bias;
    const bf16 *norm = is_query ? p.q_norm : p.k_norm;
    bf16 *to = is_query  ? p.query[kv] + (row * p.group + q) * d
               : is_value ? p.value[kv] + row * d
                          : p.key[kv] + row * d;
    Half x;
    load_head(x, p.from + row * p.width + begin + column, bias ? bias + column : bias, half);
    if (!is_value) {
        if (norm) norm_head(x, norm, half, p.eps);
        rotate_head(x, p.cos + row * half, p.sin + row * half, half);
    }
    store_head(x, to, half);
}

// The step's tokens, rows of the embedding for them, and the cosines and sines of their positions.

struct IdsParams {
    const u32 *from; // [count], on the host
    u32 *to;         // [count]
    u32 count;
};

extern "C" __global__ void take_ids(const IdsParams p) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.to[i] = p.from[i];
}

struct EmbedParams {
    const u32 *ids;    // [rows]
    const bf16 *table; // [vocab, hidden]
    float *hidden;     // [rows, hidden]
    u32 width;         // hidden, a multiple of 8
};

// One block a row.
extern "C" __global__ void embed(const EmbedParams p) {
    u64 row = blockIdx.x;
    const uint2 *from = (const uint2 *)(p.table + (u64)p.ids[row] * p.width);
    float4 *to = (float4 *)(p.hidden + row * p.width);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < p.width / 4; i += blockDim.x) {
        uint2 x = __ldg(from + i);
        to[i] = make_float4(low_bf16(x.x), high_bf16(x.x), low_bf16(x.y), high_bf16(x.y));
    }
}

struct RopeParams {
    float *cos, *sin;     // [rows, half]
    u64 start;            // position of the first row
    double scale;         // multiplies both
    double inv_freq[128]; // [half]
    u32 half;
    u32 count; // rows * half
};

// Angles in f64: at a million positions an f32 angle is wrong by whole degrees.
extern "C" __global__ void rope_table(const RopeParams p) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    double angle = (double)(p.start + i / p.half) * p.inv_freq[i % p.half];
    double s, c;
    sincos(angle, &s, &c);
    p.cos[i] = (float)(c * p.scale);
    p.sin[i] = (float)(s * p.scale);
}

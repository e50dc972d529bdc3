// RMSNorm: x * weight / sqrt(mean(x^2) + eps) per row, f32 to bf16.

struct NormParams {
    const float *from;  // [rows, width]
    const bf16 *weight; // [width]
    bf16 *to;           // [rows, width]
    u32 width;          // a multiple of 8
    float eps;
};

// Vectors of four that a thread keeps from the sum to the product; a row's further ones are read again.
#define KEPT 8

__device__ __forceinline__ float add_squares(float squares, const float4 &x) {
    return squares + (x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w);
}

__device__ __forceinline__ uint2 weighted(const float4 &x, float scale, uint2 w) {
    return make_uint2(pack_bf16(x.x * scale * low_bf16(w.x), x.y * scale * high_bf16(w.x)),
                      pack_bf16(x.z * scale * low_bf16(w.y), x.w * scale * high_bf16(w.y)));
}

// One block a row. What a thread keeps is under way all at once, and the row is read once.
extern "C" __global__ void rms_norm(const NormParams p) {
    let_next_start();
    await_previous();
    u64 row = blockIdx.x;
    u32 vectors = p.width / 4;
    const float4 *from = (const float4 *)(p.from + row * p.width);
    const uint2 *weight = (const uint2 *)p.weight;
    float4 x[KEPT];
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        u32 i = threadIdx.x + k * blockDim.x;
        if (i < vectors) x[k] = from[i];
    }
    float squares = 0.0f;
#pragma unroll
    for (u32 k = 0; k < KEPT; k++)
        if (threadIdx.x + k * blockDim.x < vectors) squares = add_squares(squares, x[k]);
    for (u32 i = threadIdx.x + KEPT * blockDim.x; i < vectors; i += blockDim.x)
        squares = add_squares(squares, from[i]);
    float scale = 1.0f / sqrtf(block_sum(squares) / (float)p.width + p.eps);
    uint2 *to = (uint2 *)(p.to + row * p.width);
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        u32 i = threadIdx.x + k * blockDim.x;
        if (i < vectors) to[i] = weighted(x[k], scale, __ldg(weight + i));
    }
    for (u32 i = threadIdx.x + KEPT * blockDim.x; i < vectors; i += blockDim.x)
        to[i] = weighted(from[i], scale, __ldg(weight + i));
}

// RMSNorm: x * weight / sqrt(mean(x^2) + eps) per row, f32 to bf16.

struct NormParams {
    const float *from;  // [rows, width]
    const bf16 *weight; // [width]
    bf16 *to;           // [rows, width]
    u32 width;          // a multiple of 8
    float eps;
};

// One block a row.
extern "C" __global__ void rms_norm(const NormParams p) {
    let_next_start();
    await_previous();
    u64 row = blockIdx.x;
    const float4 *from = (const float4 *)(p.from + row * p.width);
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < p.width / 4; i += blockDim.x) {
        float4 x = from[i];
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / (float)p.width + p.eps);
    const uint2 *weight = (const uint2 *)p.weight;
    uint2 *to = (uint2 *)(p.to + row * p.width);
    for (u32 i = threadIdx.x; i < p.width / 4; i += blockDim.x) {
        float4 x = from[i];
        uint2 w = weight[i];
        to[i] = make_uint2(pack_bf16(x.x * scale * low_bf16(w.x), x.y * scale * high_bf16(w.x)),
                           pack_bf16(x.z * scale * low_bf16(w.y), x.w * scale * high_bf16(w.y)));
    }
}

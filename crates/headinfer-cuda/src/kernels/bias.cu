// Adds a bias to every row of the residual stream.

struct BiasParams {
    float *rows_ptr;  // [rows, width]
    const bf16 *bias; // [width]
    u32 width;        // a multiple of 8
};

// One block a row.
extern "C" __global__ void add_bias(const BiasParams p) {
    let_next_start();
    await_previous();
    float4 *to = (float4 *)(p.rows_ptr + (u64)blockIdx.x * p.width);
    const uint2 *bias = (const uint2 *)p.bias;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < p.width / 4; i += blockDim.x) {
        float4 x = to[i];
        uint2 b = bias[i];
        to[i] = make_float4(x.x + low_bf16(b.x), x.y + high_bf16(b.x), x.z + low_bf16(b.y), x.w + high_bf16(b.y));
    }
}

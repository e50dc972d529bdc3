// Adds a bias to every row of the residual stream.

struct BiasParams {
    float *rows_ptr;  // [rows, width]
    const bf16 *bias; // [width]
    u32 width;
};

// One block a row.
extern "C" __global__ void add_bias(const BiasParams p) {
    let_next_start();
    await_previous();
    float *to = p.rows_ptr + (u64)blockIdx.x * p.width;
    for (u32 i = threadIdx.x; i < p.width; i += blockDim.x) to[i] += from_bf16(p.bias[i]);
}

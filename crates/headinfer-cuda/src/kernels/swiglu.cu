// gate * sigmoid(gate) * up over the columns of [rows, gate | up], into the gate's place.

struct SwigluParams {
    bf16 *rows_ptr;                   // [rows, 2 * width]
    const bf16 *gate_bias, *up_bias;  // [width], or null
    u32 width;                        // a multiple of 8
    u32 row_blocks;                   // of a row
};

__device__ __forceinline__ float swiglu_one(float gate, float up) {
    return gate / (1.0f + __expf(-gate)) * up;
}

__device__ __forceinline__ u32 swiglu_pair(u32 gate, u32 up, u32 gate_bias, u32 up_bias) {
    float low = swiglu_one(low_bf16(gate) + low_bf16(gate_bias), low_bf16(up) + low_bf16(up_bias));
    float high = swiglu_one(high_bf16(gate) + high_bf16(gate_bias), high_bf16(up) + high_bf16(up_bias));
    return pack_bf16(low, high);
}

// Eight elements a thread; the blocks of a row follow one another.
extern "C" __global__ void swiglu(const SwigluParams p) {
    let_next_start();
    await_previous();
    u32 vectors = p.width / 8, row = blockIdx.x / p.row_blocks;
    u32 column = (blockIdx.x - row * p.row_blocks) * blockDim.x + threadIdx.x;
    if (column >= vectors) return;
    uint4 *gate_ptr = (uint4 *)p.rows_ptr + (u64)row * (2 * vectors) + column;
    uint4 gate = gate_ptr[0], up = gate_ptr[vectors];
    uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 gb = p.gate_bias ? ((const uint4 *)p.gate_bias)[column] : zero;
    uint4 ub = p.up_bias ? ((const uint4 *)p.up_bias)[column] : zero;
    gate_ptr[0] = make_uint4(swiglu_pair(gate.x, up.x, gb.x, ub.x), swiglu_pair(gate.y, up.y, gb.y, ub.y),
                             swiglu_pair(gate.z, up.z, gb.z, ub.z), swiglu_pair(gate.w, up.w, gb.w, ub.w));
}

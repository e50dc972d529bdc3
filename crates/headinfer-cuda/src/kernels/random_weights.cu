// Random weights by the law of headinfer-core's model/random.rs, and a synthetic past by that of its
// model/synthetic.rs, bit for bit.

struct RandomParams {
    bf16 *to;
    u64 count; // elements
    u64 key;
    float scale, offset;
};

__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

extern "C" __global__ void random_weights(const RandomParams p) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += stride) {
        u64 u = mix(p.key + (i + 1) * 0x9e3779b97f4a7c15ull) >> 40;
        float odd = (float)(2 * (int)u - ((1 << 24) - 1));
        // The law rounds the product before the sum.
        p.to[i] = to_bf16(__fadd_rn(p.offset, __fmul_rn(odd, p.scale)));
    }
}

struct SyntheticParams {
    bf16 *to;
    u64 count; // elements
    u64 first; // index of the first
    u64 key;
    float scale;
};

extern "C" __global__ void synthetic_kv(const SyntheticParams p) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += stride) {
        u64 z = mix(p.key + (p.first + i + 1) * 0x9e3779b97f4a7c15ull);
        int sum = (int)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
        p.to[i] = to_bf16(__fmul_rn((float)(2 * sum - 4 * 0xffff), p.scale));
    }
}

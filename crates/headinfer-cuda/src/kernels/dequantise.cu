// Restores what attention sees of rows that were coded in 8 or 4 bits a value. The format, and the same in plain code,
// are in core's `cpu/kernels/quantised.rs`; each operation is rounded by itself, so that the bits are the same.

// Rows of a unit, and of those that a block restores: a block of keys.
#define UNIT 256
#define BLOCK 64
#define THREADS 256
#define BLOCKS_ROW ((HEAD_DIM + BLOCK - 1) / BLOCK)
#define COLUMNS_HALF (HEAD_DIM / 2)
#define VALUES (UNIT * HEAD_DIM)
// Columns of the first half of a row that a thread restores at a time, with as many of the second.
#define PIECE 4
#define PIECES_ROW (COLUMNS_HALF / PIECE)

struct DequantiseParams {
    const unsigned char *from[HEADS_MAX]; // each head's units: [units, 2, half]
    bf16 *to[2][HEADS_MAX];               // keys, values of each head: [units, UNIT, HEAD_DIM]
    u32 heads;
};

// Least value, and value of a code, of a block.
__device__ __forceinline__ float2 scale_of(u16 least, u16 largest, float levels) {
    float from = from_bf16(least);
    return make_float2(from, __fdiv_rn(__fsub_rn(from_bf16(largest), from), levels));
}

__device__ __forceinline__ u32 value(u32 code, float2 s) {
    float x = __fadd_rn(__fmul_rn((float)code, s.y), s.x);
    u32 bits = __float_as_uint(x);
    return x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Four columns from c on.
template <bool KEYS>
__device__ __forceinline__ void store_values(bf16 *to, u32 codes, const float2 *scales, u32 row, u32 c) {
    u32 v[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        float2 s = scales[KEYS ? c + i : row * BLOCKS_ROW + (c + i) / BLOCK];
        v[i] = value(codes >> 8 * i & 0xff, s);
    }
    *(uint2 *)(to + row * HEAD_DIM + c) = make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}

template <bool FOUR, bool KEYS>
__device__ __forceinline__ void restore(const unsigned char *from, bf16 *to, u32 block) {
    const u32 CODES = FOUR ? COLUMNS_HALF : HEAD_DIM;
    const float LEVELS = FOUR ? 15.0f : 255.0f;
    __shared__ float2 scales[KEYS ? HEAD_DIM : BLOCK * BLOCKS_ROW];
    const u16 *bounds = (const u16 *)(from + UNIT * CODES);
    if (KEYS) {
        bounds += block * 2 * HEAD_DIM;
        for (u32 c = threadIdx.x; c < HEAD_DIM; c += THREADS) scales[c] = scale_of(bounds[c], bounds[HEAD_DIM + c], LEVELS);
    } else {
        bounds += block * BLOCK * BLOCKS_ROW * 2;
        for (u32 i = threadIdx.x; i < BLOCK * BLOCKS_ROW; i += THREADS)
            scales[i] = scale_of(bounds[2 * i], bounds[2 * i + 1], LEVELS);
    }
    __syncthreads();
    from += block * BLOCK * CODES;
    to += block * BLOCK * HEAD_DIM;
#pragma unroll 2
    for (u32 i = threadIdx.x; i < BLOCK * PIECES_ROW; i += THREADS) {
        u32 row = i / PIECES_ROW, c = i % PIECES_ROW * PIECE;
        const unsigned char *codes = from + row * CODES + c;
        u32 first = *(const u32 *)codes, second;
        if (FOUR) {
            second = first >> 4 & 0x0f0f0f0fu;
            first &= 0x0f0f0f0fu;
        } else {
            second = *(const u32 *)(codes + COLUMNS_HALF);
        }
        store_values<KEYS>(to, first, scales, row, c);
        store_values<KEYS>(to, second, scales, row, COLUMNS_HALF + c);
    }
}

// A block for some rows of a half; grid (units * heads * 2, UNIT / BLOCK).
template <bool FOUR>
__device__ __forceinline__ void dequantise(const DequantiseParams &p) {
    const u32 HALF_BYTES = (UNIT * (FOUR ? COLUMNS_HALF : HEAD_DIM) + 4 * UNIT * BLOCKS_ROW + 63) / 64 * 64;
    u32 which = blockIdx.x & 1, head = (blockIdx.x >> 1) % p.heads, unit = (blockIdx.x >> 1) / p.heads;
    const unsigned char *from = p.from[head] + (u64)(2 * unit + which) * HALF_BYTES;
    bf16 *to = p.to[which][head] + (u64)unit * VALUES;
    if (which) {
        restore<FOUR, false>(from, to, blockIdx.y);
    } else {
        restore<FOUR, true>(from, to, blockIdx.y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantise_8(const __grid_constant__ DequantiseParams p) {
    dequantise<false>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantise_4(const __grid_constant__ DequantiseParams p) {
    dequantise<true>(p);
}

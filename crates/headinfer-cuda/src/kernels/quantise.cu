// Codes rows of keys and values in 8 or 4 bits a value, between the least and the largest of each block: 64 rows of a
// column of keys, 64 columns of a row of values. The format, and the same in plain code, are in core's
// `cpu/kernels/quantised.rs`; each operation is rounded by itself, so that the bytes are the same.
//
// A block a half. Keys: a thread has two neighbouring columns, and the two as far on as half a row, of 64 rows, which it
// reads twice. Values: a warp has a row.

// Rows of a unit.
#define UNIT 256
#define THREADS 256
#define WARPS (THREADS / 32)
// Rows of a block of keys, columns of one of values.
#define BLOCK 64
#define BLOCKS_ROW ((HEAD_DIM + BLOCK - 1) / BLOCK)
#define COLUMNS_HALF (HEAD_DIM / 2)
#define VALUES (UNIT * HEAD_DIM)

struct QuantiseParams {
    const bf16 *rows[2][HEADS_MAX]; // keys, values of each head: [units, UNIT, HEAD_DIM]
    unsigned char *to;              // the first half
    u64 unit_stride, head_stride;   // bytes from half to half; values follow keys
    u32 heads;
};

// A number that is ordered as values are (-0 before 0), sign-extended; of that number, the bits.
__device__ __forceinline__ int ordered(u32 bits) {
    int x = (short)bits;
    return x ^ (x >> 15 & 0x7fff);
}

// How the values of a block are coded.
struct Scale {
    float least, codes; // codes per unit of value
    u32 mask;           // 0 where all codes are 0
    u32 bounds;         // least, largest << 16
};

template <int LEVELS>
__device__ __forceinline__ Scale scale_of(int least, int largest) {
    if (largest >= 0x7e80 || least < -0x7e80) return {0.0f, 0.0f, 0, 0x7fc07fc0u};
    u32 low = ordered((u32)least) & 0xffff, high = ordered((u32)largest) & 0xffff;
    float from = from_bf16((bf16)low), apart = __fsub_rn(from_bf16((bf16)high), from);
    bool same = apart < __uint_as_float((127u - 100u) << 23);
    return {from, __fdiv_rn((float)LEVELS, apart), same ? 0u : 0xffu, low | high << 16};
}

__device__ __forceinline__ u32 code(u32 bits, const Scale &s) {
    float at = __fmul_rn(__fsub_rn(from_bf16((bf16)bits), s.least), s.codes);
    return __float_as_uint(__fadd_rn(at, 12582912.0f)) & s.mask;
}

// Codes of the columns c, c + 1, and of those half a row on.
template <bool FOUR>
__device__ __forceinline__ void store_codes(unsigned char *row, u32 c, u32 a, u32 b, u32 second_a, u32 second_b) {
    if (FOUR) {
        *(u16 *)(row + c) = (u16)(a | second_a << 4 | b << 8 | second_b << 12);
    } else {
        *(u16 *)(row + c) = (u16)(a | b << 8);
        *(u16 *)(row + COLUMNS_HALF + c) = (u16)(second_a | second_b << 8);
    }
}

template <bool FOUR>
__device__ __forceinline__ void quantise_keys(const bf16 *rows, unsigned char *codes, u16 *bounds) {
    const int LEVELS = FOUR ? 15 : 255;
    const u32 CODES = FOUR ? COLUMNS_HALF : HEAD_DIM;
    for (u32 item = threadIdx.x; item < UNIT / BLOCK * (HEAD_DIM / 4); item += THREADS) {
        u32 block = item / (HEAD_DIM / 4), c = item % (HEAD_DIM / 4) * 2;
        const bf16 *from = rows + block * BLOCK * HEAD_DIM + c;
        int least[4], largest[4];
#pragma unroll
        for (int i = 0; i < 4; i++) least[i] = 0x7fff, largest[i] = -0x8000;
#pragma unroll 4
        for (u32 row = 0; row < BLOCK; row++) {
            u32 first = *(const u32 *)(from + row * HEAD_DIM);
            u32 second = *(const u32 *)(from + row * HEAD_DIM + COLUMNS_HALF);
            int x[4] = {ordered(first), ordered(first >> 16), ordered(second), ordered(second >> 16)};
#pragma unroll
            for (int i = 0; i < 4; i++) least[i] = min(least[i], x[i]), largest[i] = max(largest[i], x[i]);
        }
        Scale s[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[i] = scale_of<LEVELS>(least[i], largest[i]);
            u16 *at = bounds + block * 2 * HEAD_DIM + c + (i / 2) * COLUMNS_HALF + i % 2;
            at[0] = (u16)s[i].bounds;
            at[HEAD_DIM] = (u16)(s[i].bounds >> 16);
        }
#pragma unroll 4
        for (u32 row = 0; row < BLOCK; row++) {
            u32 first = *(const u32 *)(from + row * HEAD_DIM);
            u32 second = *(const u32 *)(from + row * HEAD_DIM + COLUMNS_HALF);
            store_codes<FOUR>(codes + (block * BLOCK + row) * CODES, c, code(first & 0xffff, s[0]), code(first >> 16, s[1]),
                              code(second & 0xffff, s[2]), code(second >> 16, s[3]));
        }
    }
}

template <bool FOUR>
__device__ __forceinline__ void quantise_values(const bf16 *rows, unsigned char *codes, u32 *bounds) {
    const int LEVELS = FOUR ? 15 : 255;
    const u32 CODES = FOUR ? COLUMNS_HALF : HEAD_DIM;
    __shared__ __align__(4) unsigned char coded[WARPS][HEAD_DIM];
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 row = warp; row < UNIT; row += WARPS) {
#pragma unroll
        for (u32 block = 0; block < BLOCKS_ROW; block++) {
            u32 c = block * BLOCK + 2 * lane;
            bool inside = c < HEAD_DIM;
            u32 pair = inside ? *(const u32 *)(rows + row * HEAD_DIM + c) : 0;
            int a = ordered(pair), b = ordered(pair >> 16);
            int least = __reduce_min_sync(0xffffffffu, inside ? min(a, b) : 0x7fff);
            int largest = __reduce_max_sync(0xffffffffu, inside ? max(a, b) : -0x8000);
            Scale s = scale_of<LEVELS>(least, largest);
            if (lane == 0) bounds[row * BLOCKS_ROW + block] = s.bounds;
            if (inside) *(u16 *)(coded[warp] + c) = (u16)(code(pair & 0xffff, s) | code(pair >> 16, s) << 8);
        }
        __syncwarp();
        for (u32 c = 2 * lane; c < COLUMNS_HALF; c += 64) {
            u32 first = *(const u16 *)(coded[warp] + c), second = *(const u16 *)(coded[warp] + COLUMNS_HALF + c);
            store_codes<FOUR>(codes + row * CODES, c, first & 0xff, first >> 8, second & 0xff, second >> 8);
        }
        __syncwarp();
    }
}

// Grid (units * heads * 2).
template <bool FOUR>
__device__ __forceinline__ void quantise(const QuantiseParams &p) {
    const u32 CODES = UNIT * (FOUR ? COLUMNS_HALF : HEAD_DIM);
    const u32 HALF_BYTES = (CODES + 4 * UNIT * BLOCKS_ROW + 63) / 64 * 64;
    u32 which = blockIdx.x & 1, head = (blockIdx.x >> 1) % p.heads, unit = (blockIdx.x >> 1) / p.heads;
    const bf16 *rows = p.rows[which][head] + (u64)unit * VALUES;
    unsigned char *to = p.to + unit * p.unit_stride + head * p.head_stride + which * HALF_BYTES;
    // Zeros after the bounds.
    u32 end = CODES + (which ? 4 * UNIT * BLOCKS_ROW : 4 * HEAD_DIM * (UNIT / BLOCK));
    for (u32 i = end + 4 * threadIdx.x; i < HALF_BYTES; i += 4 * THREADS) *(u32 *)(to + i) = 0;
    if (which) {
        quantise_values<FOUR>(rows, to, (u32 *)(to + CODES));
    } else {
        quantise_keys<FOUR>(rows, to, (u16 *)(to + CODES));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) quantise_8(const __grid_constant__ QuantiseParams p) {
    quantise<false>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantise_4(const __grid_constant__ QuantiseParams p) {
    quantise<true>(p);
}

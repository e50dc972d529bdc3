// Restores the rows that were packed into halves of units. The format, and the same in plain code, are in core's
// `cpu/kernels/packed.rs`.

// Rows of a unit, and of those that a block restores.
#define UNIT 256
#define ROWS 64
#define THREADS 256
// Units a launch takes at most.
#define UNITS_MAX 64
#define COLUMNS_HALF (HEAD_DIM / 2)
#define ESCAPES_MAX (3 * HEAD_DIM / 2)
#define VALUES (UNIT * HEAD_DIM)
#define HALF_BYTES ((VALUES / 2 * 3 + HEAD_DIM + 16 + 4 * ESCAPES_MAX + 63) / 64 * 64)

struct UnpackParams {
    const unsigned char *from[HEADS_MAX];   // each head's units: [units, 2, HALF_BYTES]
    bf16 *to[2][HEADS_MAX];                 // keys, values of each head: [units, UNIT, HEAD_DIM]
    const unsigned char *planes[UNITS_MAX]; // pinned, of each unit: [planes, VALUES / 2]
    u32 heads;
};

// Columns of the first half that a thread restores at a time, with as many of the second.
#define PIECE (HEAD_DIM % 16 == 0 ? 8 : 4)
#define PIECES_ROW (COLUMNS_HALF / PIECE)
#define WORDS (PIECE / 4)

__device__ __forceinline__ void load_bytes(u32 (&bytes)[WORDS], const unsigned char *from) {
    if (WORDS == 2) {
        uint2 pair = *(const uint2 *)from;
        bytes[0] = pair.x;
        bytes[WORDS - 1] = pair.y;
    } else {
        bytes[0] = *(const u32 *)from;
    }
}

// Past all caches: planes lie on the host.
__device__ __forceinline__ void load_plane(u32 (&bytes)[WORDS], const unsigned char *from) {
#pragma unroll
    for (int w = 0; w < WORDS; w++) bytes[w] = ((const volatile u32 *)from)[w];
}

// Four exponents: their bases less their codes, or 0 for code 15. An escaped one may be anything.
__device__ __forceinline__ u32 exponents(u32 codes, u32 bases) {
    u32 below = ((bases | 0x80808080u) - codes) ^ (~bases & 0x80808080u); // each byte by itself
    u32 all = codes & codes >> 1;
    all &= all >> 2;
    return below & ~((all & 0x01010101u) * 0xffu);
}

// Two values: sign, exponent, mantissa from bytes exponent << 8 | low.
__device__ __forceinline__ u32 values(u32 pair) {
    return (pair & 0x00800080u) << 8 | (pair >> 1 & 0x7f807f80u) | (pair & 0x007f007fu);
}

__device__ __forceinline__ void store_values(bf16 *to, const u32 (&low)[WORDS], const u32 (&exponent)[WORDS]) {
    u32 v[2 * WORDS];
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
        v[2 * w] = values(__byte_perm(low[w], exponent[w], 0x5140));
        v[2 * w + 1] = values(__byte_perm(low[w], exponent[w], 0x7362));
    }
    if (WORDS == 2) {
        *(uint4 *)to = make_uint4(v[0], v[1], v[2 * WORDS - 2], v[2 * WORDS - 1]);
    } else {
        *(uint2 *)to = make_uint2(v[0], v[1]);
    }
}

// A half but for its escapes; with a plane its bytes are the high nibbles.
template <bool PLANE>
__device__ __forceinline__ void restore(const unsigned char *from, const unsigned char *plane, bf16 *to, u32 first) {
    const unsigned char *codes = from + VALUES, *bases = codes + VALUES / 2;
#pragma unroll(PLANE ? 1 : 4)
    for (u32 i = threadIdx.x; i < ROWS * PIECES_ROW; i += THREADS) {
        u32 column = i % PIECES_ROW * PIECE, piece = first * PIECES_ROW + i;
        u32 index = (first + i / PIECES_ROW) * HEAD_DIM + column;
        u32 coded[WORDS], low_first[WORDS], low_second[WORDS], a[WORDS], b[WORDS];
        load_bytes(coded, codes + piece * PIECE);
        load_bytes(low_first, from + index);
        load_bytes(low_second, from + index + COLUMNS_HALF);
        if (PLANE) {
            load_plane(a, plane + piece * PIECE);
        } else {
            load_bytes(a, bases + column);
            load_bytes(b, bases + COLUMNS_HALF + column);
        }
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            u32 c = coded[w] & 0x0f0f0f0fu, d = coded[w] >> 4 & 0x0f0f0f0fu;
            if (PLANE) {
                b[w] = d | (a[w] & 0xf0f0f0f0u);
                a[w] = c | (a[w] & 0x0f0f0f0fu) << 4;
            } else {
                a[w] = exponents(c, a[w]);
                b[w] = exponents(d, b[w]);
            }
        }
        store_values(to + index, low_first, a);
        store_values(to + index + COLUMNS_HALF, low_second, b);
    }
}

// A block for some rows of a half; grid (units * heads * 2, UNIT / ROWS).
extern "C" __global__ void __launch_bounds__(THREADS) unpack(const __grid_constant__ UnpackParams p) {
    u32 which = blockIdx.x & 1, head = (blockIdx.x >> 1) % p.heads, unit = (blockIdx.x >> 1) / p.heads;
    u32 first = blockIdx.y * ROWS;
    const unsigned char *from = p.from[head] + (u64)(2 * unit + which) * HALF_BYTES;
    bf16 *to = p.to[which][head] + (u64)unit * VALUES;
    const u32 *header = (const u32 *)(from + VALUES / 2 * 3 + HEAD_DIM);
    u32 count = header[0], plane = header[1];
    if (plane) {
        restore<true>(from, p.planes[unit] + (u64)(plane - 1) * (VALUES / 2), to, first);
        return;
    }
    restore<false>(from, nullptr, to, first);
    if (count == 0) return;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count && i < ESCAPES_MAX; i += THREADS) {
        u32 escape = header[4 + i], index = escape >> 16;
        if (index / HEAD_DIM - first < ROWS) to[index] = (bf16)escape;
    }
}

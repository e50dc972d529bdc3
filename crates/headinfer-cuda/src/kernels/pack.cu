// Packs rows of keys and values into halves of units, exactly: low bytes, four-bit codes below the base of each column,
// and what has no code among the escapes. The format, and the same in plain code, are in core's `cpu/kernels/packed.rs`.
//
// A block a half. The rows are read twice, the second time mostly from the second cache: held in shared memory they
// would leave room for few blocks.

// Rows of a unit.
#define UNIT 256
#define THREADS 512
// Units a launch takes at most.
#define UNITS_MAX 64
#define COLUMNS_HALF (HEAD_DIM / 2)
#define ESCAPES_MAX (3 * HEAD_DIM / 2)
#define VALUES (UNIT * HEAD_DIM)
#define HALF_BYTES ((VALUES / 2 * 3 + HEAD_DIM + 16 + 4 * ESCAPES_MAX + 63) / 64 * 64)

struct PackParams {
    const bf16 *rows[2][HEADS_MAX]; // keys, values of each head: [units, UNIT, HEAD_DIM]
    unsigned char *to;              // the first half: HALF_BYTES
    unsigned char *planes[UNITS_MAX]; // pinned, of each unit: [planes_max, VALUES / 2]
    u32 *counts;                    // planes taken of each unit
    u32 *fault;                     // pinned: 1 + number of a unit that has no plane left
    u64 unit_stride, head_stride;   // bytes from half to half; values follow keys
    u32 heads, first_unit, planes_max;
};

// Columns of the first half that a thread codes at a time, with as many of the second.
#define PIECE (HEAD_DIM % 16 == 0 ? 8 : 4)
#define PIECES_ROW (COLUMNS_HALF / PIECE)
#define WORDS (PIECE / 4)

// Four values, two in a word.
struct Four {
    u32 a, b;
};

__device__ __forceinline__ u32 exponents(Four v) { return __byte_perm(v.a << 1, v.b << 1, 0x7531); }

__device__ __forceinline__ u32 low_bytes(Four v) {
    u32 a = (v.a & 0x007f007fu) | ((v.a >> 8) & 0x00800080u);
    u32 b = (v.b & 0x007f007fu) | ((v.b >> 8) & 0x00800080u);
    return __byte_perm(a, b, 0x6420);
}

// All bits of the bytes whose highest bit is set.
__device__ __forceinline__ u32 whole_bytes(u32 high) { return ((high & 0x80808080u) >> 7) * 0xffu; }

// Codes of four exponents, none above its base; `escaped` is not 0 when one of them has none.
__device__ __forceinline__ u32 codes(u32 exponents, u32 bases, u32 &escaped) {
    u32 below = bases - exponents;
    u32 nonzero = ((exponents & 0x7f7f7f7fu) + 0x7f7f7f7fu) | exponents;
    u32 far = ((below & 0x7f7f7f7fu) + 0x72727272u) | below; // 14 or more
    u32 far_bytes = whole_bytes(far);
    escaped = far & nonzero & 0x80808080u;
    return (below & ~far_bytes) | (far_bytes & 0x0e0e0e0eu) | (whole_bytes(~nonzero) & 0x0f0f0f0fu);
}

// PIECE values of a row, and their place.
__device__ __forceinline__ void load_values(Four (&v)[WORDS], const bf16 *from) {
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
        uint2 pair;
        if (WORDS == 2 && w == 0) {
            uint4 all = *(const uint4 *)from;
            v[0] = {all.x, all.y};
            v[WORDS - 1] = {all.z, all.w};
            break;
        }
        pair = ((const uint2 *)from)[w];
        v[w] = {pair.x, pair.y};
    }
}

__device__ __forceinline__ void store_bytes(unsigned char *to, const u32 (&bytes)[WORDS]) {
    if (WORDS == 2) {
        *(uint2 *)to = make_uint2(bytes[0], bytes[WORDS - 1]);
    } else {
        *(u32 *)to = bytes[0];
    }
}

// Base of each column, to `bases` and to the half.
__device__ __forceinline__ void find_bases(const bf16 *rows, unsigned char *bases, unsigned char *to) {
    const u32 groups = HEAD_DIM / 8, at_once = THREADS / groups;
    __shared__ uint4 largest[at_once][groups];
    u32 group = threadIdx.x % groups, first = threadIdx.x / groups;
    if (first < at_once) {
        uint4 most = make_uint4(0, 0, 0, 0);
#pragma unroll 8
        for (u32 row = first; row < UNIT; row += at_once) {
            uint4 x = ((const uint4 *)(rows + row * HEAD_DIM))[group];
            most.x = __vmaxu2(most.x, x.x & 0x7fff7fffu);
            most.y = __vmaxu2(most.y, x.y & 0x7fff7fffu);
            most.z = __vmaxu2(most.z, x.z & 0x7fff7fffu);
            most.w = __vmaxu2(most.w, x.w & 0x7fff7fffu);
        }
        largest[first][group] = most;
    }
    __syncthreads();
    if (threadIdx.x < HEAD_DIM / 2) {
        u32 most = 0;
        for (u32 i = 0; i < at_once; i++) most = __vmaxu2(most, ((const u32 *)largest[i])[threadIdx.x]);
        u16 pair = (u16)((most >> 7 & 0xff) | (most >> 15 & 0xff00));
        ((u16 *)bases)[threadIdx.x] = pair;
        ((u16 *)to)[threadIdx.x] = pair;
    }
    __syncthreads();
}

struct Escapes {
    u32 count; // those beyond the room too, but not all
    u32 entries[ESCAPES_MAX];
};

// Looks again at the values of a piece, of which some escaped. Few pieces have any.
__device__ __forceinline__ void keep_escapes(Escapes &escapes, const bf16 *rows, const unsigned char *bases, u32 index) {
    u32 column = index % HEAD_DIM;
#pragma unroll 1
    for (u32 i = 0; i < 2 * PIECE; i++) {
        u32 at = i < PIECE ? i : COLUMNS_HALF + i - PIECE;
        u32 value = rows[index + at], exponent = value >> 7 & 0xff;
        // Once there are too many none is counted: they would queue for the count.
        bool escaped = exponent && bases[column + at] - exponent >= 14;
        if (escaped && *(volatile u32 *)&escapes.count <= ESCAPES_MAX) {
            u32 slot = atomicAdd(&escapes.count, 1u);
            if (slot < ESCAPES_MAX) escapes.entries[slot] = (index + at) << 16 | value;
        }
    }
}

// In order of their index, then zeros.
__device__ __forceinline__ void write_escapes(const Escapes &escapes, u32 *to) {
    for (u32 i = threadIdx.x; i < ESCAPES_MAX; i += THREADS) {
        if (i >= escapes.count) {
            to[i] = 0;
            continue;
        }
        u32 entry = escapes.entries[i], place = 0;
        for (u32 k = 0; k < escapes.count; k++) place += escapes.entries[k] < entry;
        to[place] = entry;
    }
}

// Low nibbles of the exponents become the codes, high ones the plane.
__device__ __forceinline__ void write_plane(const bf16 *rows, unsigned char *codes_to, unsigned char *plane) {
    for (u32 i = threadIdx.x; i < UNIT * PIECES_ROW; i += THREADS) {
        u32 row = i / PIECES_ROW, column = i % PIECES_ROW * PIECE;
        Four first[WORDS], second[WORDS];
        load_values(first, rows + row * HEAD_DIM + column);
        load_values(second, rows + row * HEAD_DIM + COLUMNS_HALF + column);
        u32 low[WORDS], high[WORDS];
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            u32 a = exponents(first[w]), b = exponents(second[w]);
            low[w] = (a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4;
            high[w] = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
        }
        store_bytes(codes_to + i * PIECE, low);
        store_bytes(plane + i * PIECE, high);
    }
}

// Grid (units * heads * 2).
extern "C" __global__ void __launch_bounds__(THREADS, 2) pack(const __grid_constant__ PackParams p) {
    __shared__ __align__(16) unsigned char bases[HEAD_DIM];
    __shared__ Escapes escapes;
    __shared__ u32 number;
    u32 which = blockIdx.x & 1, head = (blockIdx.x >> 1) % p.heads, unit = (blockIdx.x >> 1) / p.heads;
    const bf16 *rows = p.rows[which][head] + (u64)unit * VALUES;
    unsigned char *to = p.to + unit * p.unit_stride + head * p.head_stride + which * HALF_BYTES;
    unsigned char *codes_to = to + VALUES, *bases_to = codes_to + VALUES / 2;
    u32 *header = (u32 *)(bases_to + HEAD_DIM), *escapes_to = header + 4;
    if (threadIdx.x == 0) escapes.count = 0;
    find_bases(rows, bases, bases_to);
#pragma unroll 2
    for (u32 i = threadIdx.x; i < UNIT * PIECES_ROW; i += THREADS) {
        u32 row = i / PIECES_ROW, column = i % PIECES_ROW * PIECE, index = row * HEAD_DIM + column;
        Four first[WORDS], second[WORDS];
        load_values(first, rows + index);
        load_values(second, rows + index + COLUMNS_HALF);
        u32 low_first[WORDS], low_second[WORDS], coded[WORDS], any = 0;
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            u32 first_escaped, second_escaped, at = column + 4 * w;
            u32 a = codes(exponents(first[w]), *(const u32 *)(bases + at), first_escaped);
            u32 b = codes(exponents(second[w]), *(const u32 *)(bases + COLUMNS_HALF + at), second_escaped);
            coded[w] = a | b << 4;
            low_first[w] = low_bytes(first[w]);
            low_second[w] = low_bytes(second[w]);
            any |= first_escaped | second_escaped;
        }
        store_bytes(codes_to + i * PIECE, coded);
        store_bytes(to + index, low_first);
        store_bytes(to + index + COLUMNS_HALF, low_second);
        if (any) keep_escapes(escapes, rows, bases, index);
    }
    __syncthreads();
    u32 end = (HALF_BYTES - VALUES / 2 * 3 - HEAD_DIM) / 4; // words of header, escapes and the rest
    for (u32 i = 4 + ESCAPES_MAX + threadIdx.x; i < end; i += THREADS) header[i] = 0;
    if (escapes.count <= ESCAPES_MAX) {
        if (threadIdx.x < 4) header[threadIdx.x] = threadIdx.x == 0 ? escapes.count : 0;
        write_escapes(escapes, escapes_to);
        return;
    }
    if (threadIdx.x == 0) number = atomicAdd(p.counts + unit, 1u);
    for (u32 i = threadIdx.x; i < ESCAPES_MAX; i += THREADS) escapes_to[i] = 0;
    for (u32 i = threadIdx.x; i < HEAD_DIM; i += THREADS) bases_to[i] = 0;
    __syncthreads();
    bool room = number < p.planes_max;
    if (threadIdx.x < 4) header[threadIdx.x] = threadIdx.x == 1 && room ? number + 1 : 0;
    if (room) {
        write_plane(rows, codes_to, p.planes[unit] + (u64)number * (VALUES / 2));
    } else if (threadIdx.x == 0) {
        *(volatile u32 *)p.fault = 1 + p.first_unit + unit;
    }
}

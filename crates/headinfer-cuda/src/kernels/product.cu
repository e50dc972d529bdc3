// Products of a few rows: y = x · wᵀ with w [out, inner] read once, at the rate of the device's memory. A warp takes
// OUTPUTS neighbouring outputs; its lanes take 16 bytes of w in turn, so that each output's sum has one order, whatever
// the number of rows.

#define WARPS 8
#define OUTPUTS 2
#define UNROLL 4
#define LANE_ELEMENTS 8
#define WARP_ELEMENTS (32 * LANE_ELEMENTS)

struct ProductParams {
    const bf16 *weight; // [out, inner]
    const bf16 *from;   // [rows, from_stride]
    void *to;           // [rows, to_stride]
    u32 out;
    u32 inner;       // a multiple of 8
    u32 from_stride; // a multiple of 8
    u32 to_stride;
    u32 output; // 0: bf16, 1: f32, 2: added to f32
    u32 rows;
};

// Weights pass the first cache by, which x needs. Volatile, or the compiler puts each load beside its use.
__device__ __forceinline__ uint4 load_weight(const bf16 *from) {
    uint4 w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
        : "l"(from));
    return w;
}

// Adds eight products to two sums: of the lower and of the higher halves.
__device__ __forceinline__ void add_products(float (&sums)[2], const uint4 &w, const uint4 &x) {
    const u32 *ws = &w.x, *xs = &x.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums[0] += low_bf16(ws[i]) * low_bf16(xs[i]);
        sums[1] += high_bf16(ws[i]) * high_bf16(xs[i]);
    }
}

__device__ __forceinline__ void store(const ProductParams &p, u64 at, float sum) {
    switch (p.output) {
    case 0: ((bf16 *)p.to)[at] = to_bf16(sum); break;
    case 1: ((float *)p.to)[at] = sum; break;
    default: ((float *)p.to)[at] += sum;
    }
}

// Up to here there is a kernel for each number of rows.
#define EXACT 4

// Rows past the last are the last again, and not stored.
template <int ROWS> __device__ __forceinline__ const bf16 *row_of(const ProductParams &p, int r) {
    return p.from + (u64)(ROWS > EXACT ? min((u32)r, p.rows - 1) : r) * p.from_stride;
}

typedef uint4 Weights[UNROLL][OUTPUTS];

// A step of UNROLL * WARP_ELEMENTS columns: this lane's weights from column k on.
__device__ __forceinline__ void load_step(Weights &w, const bf16 *const (&weight)[OUTPUTS], u32 k) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int j = 0; j < OUTPUTS; j++) w[u][j] = load_weight(weight[j] + k + u * WARP_ELEMENTS);
}

template <int ROWS>
__device__ __forceinline__ void add_step(float (&sums)[OUTPUTS][ROWS][2], const ProductParams &p, const Weights &w, u32 k) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            uint4 x = *(const uint4 *)(row_of<ROWS>(p, r) + k + u * WARP_ELEMENTS);
#pragma unroll
            for (int j = 0; j < OUTPUTS; j++) add_products(sums[j][r], w[u][j], x);
        }
}

template <int ROWS> __device__ __forceinline__ void product(const ProductParams &p) {
    let_next_start();
    u32 lane = threadIdx.x & 31;
    u32 first = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * OUTPUTS;
    if (first >= p.out) return;
    const bf16 *weight[OUTPUTS];
#pragma unroll
    for (int j = 0; j < OUTPUTS; j++) weight[j] = p.weight + (u64)min(first + j, p.out - 1) * p.inner;
    float sums[OUTPUTS][ROWS][2] = {};
    u32 base = 0, step = UNROLL * WARP_ELEMENTS;
    Weights w;
    // No kernel writes weights: the first ones are on their way before x is there.
    if (step <= p.inner) load_step(w, weight, lane * LANE_ELEMENTS);
    await_previous();
    while (base + step <= p.inner) {
        add_step<ROWS>(sums, p, w, base + lane * LANE_ELEMENTS);
        base += step;
        if (base + step <= p.inner) load_step(w, weight, base + lane * LANE_ELEMENTS);
    }
    for (u32 k = base + lane * LANE_ELEMENTS; k < p.inner; k += WARP_ELEMENTS)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            uint4 x = *(const uint4 *)(row_of<ROWS>(p, r) + k);
#pragma unroll
            for (int j = 0; j < OUTPUTS; j++) add_products(sums[j][r], load_weight(weight[j] + k), x);
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int j = 0; j < OUTPUTS; j++) {
            float sum = warp_sum(sums[j][r][0] + sums[j][r][1]);
            if (lane == 0 && first + j < p.out && (ROWS <= EXACT || r < p.rows)) store(p, (u64)r * p.to_stride + first + j, sum);
        }
}

// For up to so many rows: a warp's sums are registers.
#define PRODUCT(ROWS) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) product_##ROWS(const ProductParams p) { product<ROWS>(p); }
PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
PRODUCT(8)
PRODUCT(16)

// What all kernels share. NVRTC gets no headers, so this text is put before each kernel's.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef u16 bf16; // bits

// Heads a launch takes at most; as many pointers travel in its parameters.
#define HEADS_MAX 64

#define NEG_INFINITY __int_as_float(0xff800000)

__device__ __forceinline__ float from_bf16(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Rounds to nearest even; the first argument becomes the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ bf16 to_bf16(float x) { return (bf16)(pack_bf16(x, 0.0f) & 0xffffu); }

// 2^x; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// Sum over a block of up to 1024 threads, the same in every thread and run.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[32];
    x = warp_sum(x);
    int warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    if ((threadIdx.x & 31) == 0) partial[warp] = x;
    __syncthreads();
    x = (threadIdx.x & 31) < warps ? partial[threadIdx.x & 31] : 0.0f;
    return warp_sum(x);
}

// Programmatic dependent launch: a kernel that is launched early has blocks on the device while the one before it in
// its stream still runs. Such a kernel calls both of these, the second before it reads or writes anything that
// others write: then all earlier kernels have ended, as each of them waited in its turn.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Fragments of m16n8k16 with g = lane / 4 and t = lane % 4, a register holding two neighbours in k:
//   a: (row g, k 2t), (row g + 8, k 2t), (row g, k 2t + 8), (row g + 8, k 2t + 8)
//   b: (k 2t, column g), (k 2t + 8, column g)
//   c: (row g, columns 2t and 2t + 1), (row g + 8, the same)
__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

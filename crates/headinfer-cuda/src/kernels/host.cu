// What passes between the device and the CPU within a step, in pinned memory that both see: queries there, states
// back, and the flags by which each waits for the other.

struct FlagParams {
    u32 *flag; // a number that only grows, and may pass its end
    u32 number;
};

// One thread: all that was put on the stream before is seen by whoever sees the number.
extern "C" __global__ void raise_flag(const FlagParams p) {
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p.flag), "r"(p.number) : "memory");
}

// One thread: ends when the flag has reached the number.
extern "C" __global__ void await_flag(const FlagParams p) {
    u32 now;
    do {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(now) : "l"(p.flag) : "memory");
    } while ((int)(now - p.number) < 0);
}

struct GiveParams {
    const bf16 *from;
    float *to; // pinned
    u64 count;
};

extern "C" __global__ void give_queries(const GiveParams p) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.to[i] = from_bf16(p.from[i]);
}

struct TakeParams {
    const float *from_max, *from_sum; // pinned, [rows]
    const float *from_acc;            // pinned, [rows, head_dim]
    float *max, *sum, *acc;
    u32 rows, head_dim;
    float scale_log2;
};

// The CPU's scores are powers of two already; those of a carried state are raw, before scaling. What the CPU wrote is
// read past all caches.
extern "C" __global__ void take_state(const TakeParams p) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.rows * p.head_dim) p.acc[i] = *(const volatile float *)(p.from_acc + i);
    if (i < p.rows) {
        p.max[i] = *(const volatile float *)(p.from_max + i) / p.scale_log2;
        p.sum[i] = *(const volatile float *)(p.from_sum + i);
    }
}

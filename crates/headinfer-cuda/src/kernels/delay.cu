// Waits: tests delay lanes by it, to see that only events order them.

struct DelayParams {
    u64 nanoseconds;
};

extern "C" __global__ void delay(const DelayParams p) {
    u64 begun, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begun));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begun < p.nanoseconds);
}

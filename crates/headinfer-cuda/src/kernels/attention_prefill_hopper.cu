// Prefill attention as Hopper does it (sm_90a): keys and values by TMA into a ring in shared memory, products by wgmma.
//
// A thread block takes 64 rows of one head for each of its CONSUMERS, groups of four warps, and walks the visible
// blocks of KEYS. One more group is the producer: a thread of it asks for block after block, K and V each in STAGES
// slots, and is told by barriers which are free. A consumer keeps two products under way: the scores of block i and the
// sum of block i - 1 are asked for together, and while the sum runs the scores become weights. IN_TURNS makes
// consumers ask one after another, so that one's softmax meets another's products. Each row sums in the same order
// however this is built, but for KEYS: with that the bits change.
//
// Counts for a block of keys and 64 rows, d = HEAD_DIM, in cycles of a whole multiprocessor:
//   wgmma      scores and sum, at 2048 FMA a cycle         KEYS * d / 16
//   exp2       at 16 a cycle                               KEYS * 4
//   max, sum, scale, pack: about 4.5 instructions a score  KEYS * 2.3
// At d = 64 the exponentials take as long as the products, at 128 half of that. A consumer's own softmax is one warp to
// a scheduler, as its latency shows: at d = 64 two consumers leave the tensor cores idle, four do not.
//
// Tried on one H100 at its power limit, of torch's cuDNN on the same data in turns (bench/runs/2026-11-24-h100-16c/
// hopper-tried.txt): 8K and 32K causal rows of 32 query and 8 KV heads; 8K and 16K rows of 4 query heads over 128K keys.
//   d    CONSUMERS x KEYS x STAGES    8K     32K    8K/128K  16K/128K   expected
//   128  2 x 128 x 2, in turns        1.03   1.07   1.05     1.05       1.0: softmax half hidden by each of the overlaps
//   128  2 x 128 x 2                  1.04   0.98   1.05     0.97       a little less
//   128  2 x 128 x 3, in turns        1.05   1.06   1.04     1.04       the same: two slots hide the copies
//   128  2 x 128 x 2, two blocks of threads share loads by multicast
//                                     0.76   0.74   0.66     0.62       a little more, as L2 is read half as often; but the
//                                                                       blocks wait for one another
//   128  3 x 64 x 3, in turns         1.02   0.97   0.71     0.84       less: 1.3 waves of 192 rows over a past
//   128  2 x 64 x 3, in turns         0.95   0.88   0.94     0.86       less: twice the barriers
//   256  2 x 64 x 2, in turns         1.12   1.19   1.10     1.05       1.0
//   256  2 x 64 x 2                   1.11   1.04   1.06     1.03       a little less
//   64   2 x 128 x 2, in turns        0.84   0.91   0.89     0.90       1.0: softmax's latency was overlooked
//   64   3 x 128 x 2, in turns        1.01   1.08   0.75     1.01       1.1; 192 rows make 1.3 waves of 8K rows
//   64   4 x 64 x 3, in turns         0.95   0.98   1.01     1.02       1.1; 256 rows make one wave
//   64   4 x 64 x 3                   1.02   1.01   1.02     1.00       the same: with four, turns come by themselves
// An exponential in four by a polynomial instead (d = 64 and 128): 0.9 of the same without.

#define ROWS (CONSUMERS * 64)
#define GROUP 128                        // threads of a producer or consumer
#define THREADS ((CONSUMERS + 1) * GROUP)
#define PANELS (HEAD_DIM / 64)           // of 64 columns: what TMA turns into rows of 128 swizzled bytes
#define PANEL_ROW 128                    // bytes
#define SIDE (KEYS * HEAD_DIM * 2)       // bytes of K or V of a block
#define WEIGHTS (KEYS / 4)               // registers of a lane, two weights each
#define SLACK 8.0f                       // a weight is at most 2^SLACK
// The registers of a multiprocessor, less what the producer keeps, dealt out in eights.
#define PRODUCER_REGISTERS 24
#define CONSUMER_REGISTERS (CONSUMERS == 2 ? 240 : CONSUMERS == 3 ? 160 : 112)

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// ---- Barriers of shared memory: they change phase when all have arrived and all bytes are there.

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until phase number `phase`, from 0, is over.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 phase) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@over bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(barrier), "r"(phase & 1) : "memory");
}

// Two groups of threads meet at a turn: one waits there until the other has said so.
__device__ __forceinline__ void turn_wait(int turn) {
    if (IN_TURNS) asm volatile("bar.sync %0, %1;" ::"r"(turn + 1), "n"(2 * GROUP) : "memory");
}

__device__ __forceinline__ void turn_give(int turn) {
    if (IN_TURNS) asm volatile("bar.arrive %0, %1;" ::"r"(turn + 1), "n"(2 * GROUP) : "memory");
}

// ---- Copies and products.

// A panel of rows from `row` on; what lies outside of the tensor becomes zeros.
__device__ __forceinline__ void load_panel(u32 to, const TensorMap &map, int column, int row, int head, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];"
                 ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(head), "r"(barrier) : "memory");
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// All groups of products but the newest PENDING are done.
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Products read and write registers behind the compiler's back: what uses them must not move past this.
template <int N>
__device__ __forceinline__ void pin(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < 4 * N; i++) asm volatile("" : "+f"(x[i / 4][i % 4])::"memory");
}

template <int N>
__device__ __forceinline__ void pin(u32 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

// How wgmma finds a matrix in panels of 128-byte rows: eight rows make 1024 bytes; `panel` bytes from one to the next,
// which matters where columns run across them.
__device__ __forceinline__ u64 matrix(u32 address, u32 panel) {
    const u64 eight_rows = 8 * PANEL_ROW >> 4, swizzled = 1;
    return (address & 0x3ffff) >> 4 | (u64)(panel >> 4) << 16 | eight_rows << 32 | swizzled << 62;
}

// As far as `bytes` from a matrix's address.
__device__ __forceinline__ u64 along(u64 matrix, u32 bytes) { return matrix + (bytes >> 4); }

#define REGISTERS_32                                                                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64                                                                                                  \
    REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                 \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128                                                                                                 \
    REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                 \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                   \
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "       \
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define IN_OUT_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define IN_OUT_16(d, i) IN_OUT_4(d, i), IN_OUT_4(d, i + 1), IN_OUT_4(d, i + 2), IN_OUT_4(d, i + 3)
#define IN_OUT_32(d, i) IN_OUT_16(d, i), IN_OUT_16(d, i + 4)
#define IN_OUT_64(d, i) IN_OUT_32(d, i), IN_OUT_32(d, i + 8)
#define IN_OUT_128(d, i) IN_OUT_64(d, i), IN_OUT_64(d, i + 16)

// c (64 rows by COLUMNS) gets, or with `add` has added to it, 16 columns of a by 16 of b, both in shared memory with rows
// along which they are multiplied.
#define PRODUCT_OF_ROWS(COLUMNS, N, A, B, ADD)                                                                        \
    __device__ __forceinline__ void product_of_rows(float (&c)[COLUMNS / 8][4], u64 a, u64 b, int add) {              \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\n"                                             \
                     "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" REGISTERS_##N "}, "           \
                     A ", " B ", add, 1, 1, 0, 0;\n}" : IN_OUT_##N(c, 0) : "l"(a), "l"(b), "r"(add));                 \
    }
PRODUCT_OF_ROWS(64, 32, "%32", "%33", "%34")
PRODUCT_OF_ROWS(128, 64, "%64", "%65", "%66")

// c has added to it 16 columns of a, fragments in registers, by 16 rows of b in shared memory.
#define PRODUCT_WITH_COLUMNS(COLUMNS, N, A, B)                                                                        \
    __device__ __forceinline__ void product_with_columns(float (&c)[COLUMNS / 8][4], const u32 *a, u64 b) {           \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" REGISTERS_##N "}, "           \
                     "{" A "}, " B ", 1, 1, 1, 1;" : IN_OUT_##N(c, 0)                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                           \
    }
PRODUCT_WITH_COLUMNS(64, 32, "%32, %33, %34, %35", "%36")
PRODUCT_WITH_COLUMNS(128, 64, "%64, %65, %66, %67", "%68")
PRODUCT_WITH_COLUMNS(256, 128, "%128, %129, %130, %131", "%132")

// ---- Shared memory: queries [PANELS][ROWS], then K's slots and V's, each [PANELS][KEYS], in rows of 128 bytes; barriers.

enum Which { KEY, VALUE };

struct Shared {
    u32 base;
    __device__ __forceinline__ u32 query() const { return base; }
    __device__ __forceinline__ u32 slot(Which side, int i) const {
        return base + ROWS * HEAD_DIM * 2 + (side * STAGES + i % STAGES) * SIDE;
    }
    __device__ __forceinline__ u32 barrier(int i) const { return base + ROWS * HEAD_DIM * 2 + 2 * STAGES * SIDE + i * 8; }
    __device__ __forceinline__ u32 query_full() const { return barrier(0); }
    __device__ __forceinline__ u32 full(Which side, int i) const { return barrier(1 + side * STAGES + i % STAGES); }
    __device__ __forceinline__ u32 empty(Which side, int i) const {
        return barrier(1 + (2 + side) * STAGES + i % STAGES);
    }
};

struct Walk {
    u32 past, own;
    int past_blocks, blocks;
    int clear_from, clear_to, ragged;
};

__device__ __forceinline__ void init_barriers(const Shared &shared) {
    barrier_init(shared.query_full(), 1);
    for (int i = 0; i < STAGES; i++) {
        barrier_init(shared.full(KEY, i), 1);
        barrier_init(shared.full(VALUE, i), 1);
        barrier_init(shared.empty(KEY, i), CONSUMERS);
        barrier_init(shared.empty(VALUE, i), CONSUMERS);
    }
    // Copies see them too.
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// ---- The producer.

template <int BOX>
__device__ __forceinline__ void load(u32 to, const TensorMap &map, int row, u32 full) {
    barrier_arrive_expecting(full, BOX * HEAD_DIM * 2);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) {
        load_panel(to + panel * BOX * PANEL_ROW, map, panel * 64, row, blockIdx.y, full);
    }
}

// K or V of block i, once its slot is free.
__device__ __forceinline__ void load_block(const AttendParams &p, const Walk &w, const Shared &shared, int i,
                                           Which side) {
    if (i >= w.blocks) return;
    if (i >= STAGES) barrier_wait(shared.empty(side, i), i / STAGES - 1);
    bool past = i < w.past_blocks;
    int row = (int)(block_of(p, w, i).start - (past ? p.past_from : p.own_from));
    const TensorMap &key = past ? p.past_key : p.own_key, &value = past ? p.past_value : p.own_value;
    load<KEYS>(shared.slot(side, i), side == KEY ? key : value, row, shared.full(side, i));
}

// In the order in which they are used.
__device__ __forceinline__ void produce(const AttendParams &p, const Walk &walk, const Shared &shared, u32 tile_row) {
    if (walk.blocks == 0) return;
    load<ROWS>(shared.query(), p.query, tile_row, shared.query_full());
    load_block(p, walk, shared, 0, KEY);
    for (int i = 0; i < walk.blocks; i++) {
        load_block(p, walk, shared, i + 1, KEY);
        load_block(p, walk, shared, i, VALUE);
    }
}

// ---- A consumer.

// A lane's part of two rows, `row` and `row + 8`: max and sum.
struct Rows {
    float max[2], sum[2];
};

// This consumer is done with it.
__device__ __forceinline__ void release(u32 empty) {
    if (threadIdx.x % GROUP == 0) barrier_arrive(empty);
}

__device__ __forceinline__ void ask_scores(float (&s)[KEYS / 8][4], const Shared &shared, int consumer, int i) {
    u64 q = matrix(shared.query() + consumer * 64 * PANEL_ROW, 0), k = matrix(shared.slot(KEY, i), 0);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        int panel = step / 4, within = step % 4 * 32;
        u64 rows = along(q, panel * ROWS * PANEL_ROW + within), keys = along(k, panel * KEYS * PANEL_ROW + within);
        product_of_rows(s, rows, keys, step > 0);
    }
    products_commit();
}

__device__ __forceinline__ void ask_sum(float (&acc)[HEAD_DIM / 8][4], const u32 (&w)[WEIGHTS], const Shared &shared,
                                        int i) {
    u64 v = matrix(shared.slot(VALUE, i), KEYS * PANEL_ROW);
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        product_with_columns(acc, w + 4 * step, along(v, step * 16 * PANEL_ROW));
    }
    products_commit();
}

// What is subtracted from a row's scores follows their maximum only when a weight would pass 2^SLACK; true when the
// row's sums have to shrink, by `shrink`. A factor of 1 keeps every bit.
__device__ __forceinline__ bool follow_max(const float (&s)[KEYS / 8][4], Rows &rows, float (&shrink)[2], float scale) {
    bool raised = false;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float part[4] = {NEG_INFINITY, NEG_INFINITY, NEG_INFINITY, NEG_INFINITY};
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) part[j % 4] = fmaxf(part[j % 4], fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        float largest = quad_max(fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3])));
        // False where the row has seen nothing yet and sees nothing now.
        bool raise = (largest - rows.max[r]) * scale > SLACK;
        shrink[r] = raise ? exp2_fast((rows.max[r] - largest) * scale) : 1.0f;
        rows.max[r] = raise ? largest : rows.max[r];
        raised |= raise;
    }
    return __any_sync(0xffffffffu, raised);
}

// Scores to weights, and their sums.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 8][4], Rows &rows, const float (&shrink)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // A row that has seen nothing: every weight is 2^-inf, whatever is subtracted.
        float offset = rows.max[r] == NEG_INFINITY ? 0.0f : rows.max[r] * scale, total[4] = {};
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[j][2 * r + e];
                x = exp2_fast(fmaf(x, scale, -offset));
                total[j % 2 * 2 + e] += x;
            }
        }
        rows.sum[r] = rows.sum[r] * shrink[r] + quad_sum((total[0] + total[1]) + (total[2] + total[3]));
    }
}

// Of block i. True when the accumulator has to shrink.
__device__ __forceinline__ bool softmax(const AttendParams &p, const Walk &walk, int i, u32 row, float (&s)[KEYS / 8][4],
                                        Rows &rows, float (&shrink)[2]) {
    if (i < walk.clear_from || i >= walk.clear_to || i == walk.ragged) {
        Block block = block_of(p, walk, i);
        mask_scores(s, visible(p, row, block.start, block.count), visible(p, row + 8, block.start, block.count));
    }
    bool raised = follow_max(s, rows, shrink, p.scale_log2);
    weigh(s, rows, shrink, p.scale_log2);
    return raised;
}

// The accumulator shrinks if it has to, and the weights become fragments.
__device__ __forceinline__ void settle(float (&acc)[HEAD_DIM / 8][4], u32 (&w)[WEIGHTS], const float (&s)[KEYS / 8][4],
                                       bool raised, const float (&shrink)[2]) {
    if (raised) {
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; i++) acc[i / 4][i % 4] *= shrink[i % 4 / 2];
    }
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) w[i] = pack_bf16(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
}

__device__ __forceinline__ void walk_blocks(const AttendParams &p, const Walk &walk, const Shared &shared, u32 row,
                                            Rows &rows, float (&acc)[HEAD_DIM / 8][4]) {
    int consumer = threadIdx.x / GROUP - 1, next = (consumer + 1) % CONSUMERS, last = walk.blocks - 1;
    float s[KEYS / 8][4], shrink[2];
    u32 w[WEIGHTS];
    if (consumer == CONSUMERS - 1) turn_give(0);
    barrier_wait(shared.query_full(), 0);
    barrier_wait(shared.full(KEY, 0), 0);
    turn_wait(consumer);
    pin(s);
    products_begin();
    ask_scores(s, shared, consumer, 0);
    turn_give(next);
    products_wait<0>();
    pin(s);
    release(shared.empty(KEY, 0));
    bool raised = softmax(p, walk, 0, row, s, rows, shrink);
    settle(acc, w, s, raised, shrink);
    if (last > 0) barrier_wait(shared.full(KEY, 1), 1 / STAGES);
    for (int i = 1; i <= last; i++) {
        turn_wait(consumer);
        pin(s), pin(w), pin(acc);
        products_begin();
        ask_scores(s, shared, consumer, i);
        barrier_wait(shared.full(VALUE, i - 1), (i - 1) / STAGES);
        ask_sum(acc, w, shared, i - 1);
        turn_give(next);
        products_wait<1>();
        pin(s);
        release(shared.empty(KEY, i));
        raised = softmax(p, walk, i, row, s, rows, shrink);
        pin(s);
        // Here rather than at the loop's head: a branch between the two keeps the assembler from waiting for the sum
        // before it forms the weights.
        if (i < last) barrier_wait(shared.full(KEY, i + 1), (i + 1) / STAGES);
        products_wait<0>();
        pin(w), pin(acc);
        release(shared.empty(VALUE, i - 1));
        settle(acc, w, s, raised, shrink);
    }
    barrier_wait(shared.full(VALUE, last), last / STAGES);
    pin(w), pin(acc);
    products_begin();
    ask_sum(acc, w, shared, last);
    products_wait<0>();
    pin(acc);
}

__device__ __forceinline__ void consume(const AttendParams &p, const Walk &walk, const Shared &shared, u32 tile_row) {
    u32 row = tile_row + (threadIdx.x / 32 - 4) * 16 + threadIdx.x % 32 / 4;
    Rows rows;
    float acc[HEAD_DIM / 8][4];
#pragma unroll
    for (int r = 0; r < 2; r++) load_row(p, row + r * 8, rows.max[r], rows.sum[r], acc, r);
    if (walk.blocks > 0) walk_blocks(p, walk, shared, row, rows, acc);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (row + r * 8 < p.rows) store_row(p, row + r * 8, rows.max[r], rows.sum[r], acc, r);
    }
}

// Grid (tiles of rows, heads). The last tile sees most and starts first.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_prefill_hopper(const __grid_constant__ AttendParams p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared shared = {shared_address(memory)};
    u32 tile_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    Walk walk;
    find_walk(p, tile_row, ROWS, walk);
    if (threadIdx.x == 0) init_barriers(shared);
    __syncthreads();
    if (threadIdx.x < GROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x == 0) produce(p, walk, shared, tile_row);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        consume(p, walk, shared, tile_row);
    }
}

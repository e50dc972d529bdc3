/* Stands in for libcuda, libnvrtc, libcublasLt and libnvidia-ml where there is no GPU: device memory is the heap's,
 * copies copy, kernels and products do nothing. One file is all of them, so that they share their state.
 *
 * The variable STUB holds words "name:value", and "name:value:n" for a function that has the code `value` at its
 * n-th call:
 *   driver, nvrtc, cublas   versions, 13000 for 13.0
 *   pids                    0 when the management library knows no process numbers, as in containers
 *   devices, sm             how many GPUs, and their compute capability, 90 for 9.0
 *   total, taken            MiB of device memory, and MiB that another process takes once a backend opens
 *   cuInit, cuMemAlloc_v2   and so on: the code that the function gives from its n-th call (the first) on
 * A negative code never comes back: the function says so on stderr and sleeps. A code that means a fault of a kernel
 * stays: every call after it gives the same. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long address;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t allocated, loaded;
static int contexts, held, sticky;

#define CONTEXT_BYTES (300ull << 20)
/* What the first product loads: LIBRARIES_BYTES of device.rs. */
#define LIBRARIES_BYTES (8ull << 20)
#define FUNCTIONS_MAX 80
#define BLOCKS_MAX 64

/* The word of `name` in STUB: its value, and the number behind it or 1. */
static int word(const char *name, long *value, long *nth) {
  const char *at = getenv("STUB");
  size_t length = strlen(name);
  while (at && *at) {
    if (!strncmp(at, name, length) && at[length] == ':') {
      char *end;
      *value = strtol(at + length + 1, &end, 10);
      *nth = *end == ':' ? strtol(end + 1, 0, 10) : 1;
      return 1;
    }
    at = strchr(at, ' ');
    at = at ? at + 1 : 0;
  }
  return 0;
}

static long setting(const char *name, long otherwise) {
  long value, nth;
  return word(name, &value, &nth) ? value : otherwise;
}

static int count(const char *name) {
  static const char *names[FUNCTIONS_MAX];
  static int counts[FUNCTIONS_MAX];
  int i = 0;
  while (i < FUNCTIONS_MAX - 1 && names[i] && strcmp(names[i], name)) i++;
  names[i] = name;
  return ++counts[i];
}

static int code(const char *name) {
  long value = 0, nth;
  pthread_mutex_lock(&lock);
  int calls = count(name), result = sticky;
  if (!result && word(name, &value, &nth) && calls >= nth) result = (int)value;
  if (!strncmp(name, "cu", 2) && name[2] < 'a' && (result >= 700 || result == 214)) sticky = result;
  pthread_mutex_unlock(&lock);
  if (result < 0) {
    fprintf(stderr, "warning: %s sleeps\n", name);
    for (;;) pause();
  }
  if (sticky && !strncmp(name, "cublas", 6)) return 13; /* execution failed */
  return result;
}

#define CALL                        \
  do {                              \
    int result = code(__func__);    \
    if (result) return result;      \
  } while (0)

/* The driver. */

int cuInit(unsigned flags) { CALL; return 0; }
int cuDriverGetVersion(int *version) { *version = setting("driver", 13000); return 0; }
int cuGetErrorString(int error, const char **text) {
  *text = error == 2 ? "out of memory"
      : error == 100 ? "no CUDA-capable device is detected"
      : error == 700 ? "an illegal memory access was encountered"
                     : "something went wrong";
  return 0;
}
int cuDeviceGetCount(int *devices) { CALL; *devices = setting("devices", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { CALL; *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { CALL; snprintf(name, length, "Stub GPU"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  CALL;
  int sm = setting("sm", 90);
  *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : attribute == 97 ? 232448 : 132;
  return 0;
}
int cuDeviceGetPCIBusId(char *text, int length, int device) { CALL; snprintf(text, length, "0000:01:00.0"); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  CALL;
  contexts++;
  held++;
  *context = &contexts;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  if (!--held) loaded = 0;
  CALL;
  return 0;
}
int cuCtxSetCurrent(void *context) { CALL; return 0; }
static size_t left(void) {
  size_t used = allocated + loaded + CONTEXT_BYTES;
  /* The first context is that of whoever only looks. */
  if (contexts > 1) used += (size_t)setting("taken", 0) << 20;
  size_t total = (size_t)setting("total", 24576) << 20;
  return used < total ? total - used : 0;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  CALL;
  *free = left();
  *total = (size_t)setting("total", 24576) << 20;
  return 0;
}
static struct { char *base; size_t bytes; } blocks[BLOCKS_MAX];
int cuMemAlloc_v2(address *base, size_t bytes) {
  CALL;
  if (bytes > left()) return 2;
  for (int i = 0; i < BLOCKS_MAX; i++) {
    if (blocks[i].base) continue;
    /* Zeroed, as no kernel will write. */
    if (!(blocks[i].base = calloc(1, bytes))) return 2;
    blocks[i].bytes = bytes;
    allocated += bytes;
    *base = (address)blocks[i].base;
    return 0;
  }
  return 2;
}
int cuMemFree_v2(address base) {
  for (int i = 0; i < BLOCKS_MAX; i++) {
    if ((address)blocks[i].base != base) continue;
    allocated -= blocks[i].bytes;
    free(blocks[i].base);
    blocks[i].base = 0;
  }
  CALL;
  return 0;
}
int cuMemsetD8_v2(address to, unsigned char value, size_t bytes) { CALL; memset((void *)to, value, bytes); return 0; }
int cuMemHostRegister_v2(void *base, size_t bytes, unsigned flags) { CALL; return 0; }
int cuMemHostUnregister(void *base) { CALL; return 0; }
int cuMemHostGetDevicePointer_v2(address *at, void *base, unsigned flags) { CALL; *at = (address)base; return 0; }
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *stream) {
    CALL;
    memcpy((void *)to, (void *)from, bytes);
    return 0;
}
int cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) { CALL; memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoH_v2(void *to, address from, size_t bytes) { CALL; memcpy(to, (void *)from, bytes); return 0; }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
  CALL;
  memcpy((void *)to, from, bytes);
  return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) {
  CALL;
  memcpy(to, (void *)from, bytes);
  return 0;
}
int cuStreamCreate(void **stream, unsigned flags) { CALL; *stream = &contexts; return 0; }
int cuStreamDestroy_v2(void *stream) { CALL; return 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { CALL; return 0; }
int cuStreamSynchronize(void *stream) { CALL; return 0; }
int cuEventCreate(void **event, unsigned flags) { CALL; *event = &contexts; return 0; }
int cuEventDestroy_v2(void *event) { CALL; return 0; }
int cuEventRecord(void *event, void *stream) { CALL; return 0; }
int cuEventQuery(void *event) { CALL; return 0; }
int cuEventSynchronize(void *event) { CALL; return 0; }
int cuEventElapsedTime(float *ms, void *start, void *end) { CALL; *ms = 1; return 0; }
int cuModuleLoadData(void **module, const void *image) { CALL; *module = &contexts; return 0; }
int cuModuleUnload(void *module) { CALL; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { CALL; *function = &contexts; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { CALL; return 0; }
int cuLaunchKernelEx(const void *config, void *function, void **params, void **extra) {
  CALL;
  return 0;
}

/* NVRTC. */

int nvrtcVersion(int *major, int *minor) {
  CALL;
  *major = setting("nvrtc", 13000) / 1000;
  *minor = setting("nvrtc", 13000) % 1000 / 10;
  return 0;
}
int nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names) {
  CALL;
  *program = &contexts;
  return 0;
}
int nvrtcCompileProgram(void *program, int options, const char *const *texts) { CALL; return 0; }
static const char compile_log[] = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { CALL; *bytes = sizeof compile_log; return 0; }
int nvrtcGetProgramLog(void *program, char *log) { CALL; memcpy(log, compile_log, sizeof compile_log); return 0; }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { CALL; *bytes = 4; return 0; }
int nvrtcGetCUBIN(void *program, char *cubin) { CALL; memcpy(cubin, "stub", 4); return 0; }
int nvrtcDestroyProgram(void **program) { CALL; return 0; }

/* cuBLASLt. */

int cublasLtCreate(void **handle) { CALL; *handle = &contexts; return 0; }
int cublasLtDestroy(void *handle) { CALL; return 0; }
unsigned long cublasLtGetCudartVersion(void) { return setting("cublas", 13000); }
unsigned long cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmul(void *handle, void *product, const void *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const void *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
  CALL;
  loaded = LIBRARIES_BYTES;
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
  CALL;
  memset(results, 0, 96 * wanted); /* a cublasLtMatmulHeuristicResult_t each… */
  for (int i = 0; i < wanted; i++) ((int *)results)[24 * i] = i; /* …with an algorithm of its own */
  *found = wanted;
  return 0;
}
int cublasLtMatmulDescCreate(void **product, int compute, int scale) { CALL; *product = &contexts; return 0; }
int cublasLtMatmulDescDestroy(void *product) { CALL; return 0; }
int cublasLtMatmulDescSetAttribute(void *product, int attribute, const void *value, size_t bytes) { CALL; return 0; }
int cublasLtMatmulPreferenceCreate(void **preference) { CALL; *preference = &contexts; return 0; }
int cublasLtMatmulPreferenceDestroy(void *preference) { CALL; return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
  CALL;
  return 0;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, unsigned long long rows, unsigned long long columns,
                               long long stride) {
  CALL;
  *layout = &contexts;
  return 0;
}
int cublasLtMatrixLayoutDestroy(void *layout) { CALL; return 0; }

/* The management library. */

static size_t own(void) { return held ? CONTEXT_BYTES + allocated + loaded : 0; }
int nvmlInit_v2(void) { CALL; return 0; }
int nvmlShutdown(void) { CALL; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device) { CALL; *device = &contexts; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *bytes) {
  CALL;
  unsigned long long total = (unsigned long long)setting("total", 24576) << 20;
  bytes[0] = total;
  bytes[2] = own() + (1000 << 20); /* and another process's */
  bytes[1] = total - bytes[2];
  return 0;
}
struct process { unsigned pid; unsigned long long used; unsigned instances[2]; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *list) {
  CALL;
  list[0] = (struct process){1, 1000 << 20, {0, 0}};
  list[1] = (struct process){setting("pids", 1) ? getpid() : 2, own(), {0, 0}};
  *count = 2;
  return 0;
}

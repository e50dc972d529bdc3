#!/usr/bin/env python3
"""Prefill attention kernels beside torch's flash and cuDNN backends: TFLOP/s on the same random data, in turns.

    tools/attention_peers.py [--json FILE] [--seconds N] [HEAD_DIM ...]

Compiles the kernels of this tree with NVRTC and launches them by the driver in torch's process, so that one shape after another is
timed for every contender within a second: at a GPU's power limit clocks drift by more than what is to be seen. Each figure is the
median of three launches; each contender has two turns. Needs a Hopper GPU, torch with CUDA, and NVRTC on LD_LIBRARY_PATH.

How a kernel is built is that of `Tiling::new` and `Hopper::new` on such a device; its parameters are `AttendParams` of attention.cuh.
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import time

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = pathlib.Path(__file__).parent.parent / "crates/headinfer-cuda/src/kernels"
K = 1 << 10
GROUP = 4  # query heads of a KV head
# KV heads, query tokens, past; no past means causal.
SHAPES = [(8, r * K, 0) for r in (8, 16, 32)]
SHAPES += [(1, r * K, p * K) for r in (8, 16) for p in (128, 256, 512, 1024)]
SHAPES += [(8, 8 * K, 128 * K)]

PORTABLE = {  # head_dim: warps, row tiles, stages, queries in shared memory, blocks of a multiprocessor
    64: (4, 2, 2, 0, 2),
    96: (4, 2, 2, 1, 2),
    128: (4, 2, 2, 1, 2),
    256: (8, 1, 2, 1, 1),
}
HOPPER = {  # head_dim: keys, stages, consumers, in turns
    64: (64, 3, 4, 0),
    128: (128, 2, 2, 1),
    256: (64, 2, 2, 1),
}

u32, u64, Heads, TensorMap = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64 * 64, ctypes.c_uint64 * 16
REST = [(name, u64) for name in "state_max state_sum state_acc partials out q_start".split()]
REST += [(name, u64) for name in "past_from past_to own_from own_to window out_stride out_column".split()]
REST += [(name, u32) for name in "rows group first_split splits row_tiles wave first last".split()]
REST += [("scale_log2", ctypes.c_float)]


class Pointers(ctypes.Structure):
    _fields_ = [(name, Heads) for name in "query key value own_key own_value".split()] + REST


class Maps(ctypes.Structure):
    _fields_ = [(name, TensorMap) for name in "query past_key past_value own_key own_value".split()] + REST
    # The kernel's struct is a multiple of 64 bytes.
    _fields_ += [("padding", u64 * 8)]


def call(what, result):
    if result:
        raise RuntimeError(f"{what} failed with {result}")


def compiled(name, defines):
    """Device code of kernels/NAME.cu for sm_90a."""
    nvrtc = next(lib for lib in map(load, ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")) if lib)
    text = "".join((KERNELS / file).read_text() for file in ("prelude.cuh", "attention.cuh", "attention_rows.cuh", f"{name}.cu"))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    call("nvrtcCreateProgram", nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None))
    options = ["--gpu-architecture=sm_90a", "--std=c++17", "--device-as-default-execution-space"]
    options += [f"--define-macro={define}" for define in defines]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    call(f"compiling {name}", nvrtc.nvrtcCompileProgram(program, len(options), array))
    call("nvrtcGetCUBINSize", nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    call("nvrtcGetCUBIN", nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin.raw


def load(name):
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class Kernel:
    """A kernel in torch's context."""

    def __init__(self, driver, name, defines, shared, threads):
        self.driver, self.shared, self.threads, self.function = driver, shared, threads, ctypes.c_void_p()
        module = ctypes.c_void_p()
        call("cuModuleLoadData", driver.cuModuleLoadData(ctypes.byref(module), compiled(name, defines)))
        call(name, driver.cuModuleGetFunction(ctypes.byref(self.function), module, name.encode()))
        call("cuFuncSetAttribute", driver.cuFuncSetAttribute(self.function, 8, shared))

    def launch(self, tiles, heads, params):
        list_ = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        grid = (tiles, heads, 1)
        call("launch", self.driver.cuLaunchKernel(self.function, *grid, self.threads, 1, 1, self.shared, stream, list_, None))


class Portable(Kernel):
    def __init__(self, driver, d):
        warps, row_tiles, stages, query_shared, self.blocks = PORTABLE[d]
        self.rows, self.multiprocessors = warps * row_tiles * 16, torch.cuda.get_device_properties(0).multi_processor_count
        defines = [f"HEAD_DIM={d}", f"WARPS={warps}", f"ROW_TILES={row_tiles}", f"STAGES={stages}"]
        defines += [f"QUERY_SHARED={query_shared}", f"BLOCKS={self.blocks}"]
        shared = (stages * 2 * 64 + (self.rows if query_shared else 0)) * ((d + 15) // 16 * 16 + 8) * 2
        super().__init__(driver, "attention_prefill", defines, shared, warps * 32)
        call("cuFuncSetAttribute", driver.cuFuncSetAttribute(self.function, 9, 100))

    def run(self, query, key, value, rest):
        params = Pointers(**rest)
        for h in range(len(query)):
            params.query[h] = query[h].data_ptr()
            params.key[h] = params.own_key[h] = key[h].data_ptr()
            params.value[h] = params.own_value[h] = value[h].data_ptr()
        tiles = -(-params.rows // self.rows)
        all_at_once = self.blocks == 2 and tiles * len(query) <= 2 * self.multiprocessors
        params.wave = self.multiprocessors if all_at_once else 0xFFFFFFFF
        self.launch(tiles, len(query), params)


class Hopper(Kernel):
    def __init__(self, driver, d):
        self.keys, stages, consumers, in_turns = HOPPER[d]
        self.rows = consumers * 64
        defines = ["TENSOR_MAPS", f"HEAD_DIM={d}", f"KEYS={self.keys}", f"STAGES={stages}"]
        defines += [f"CONSUMERS={consumers}", f"IN_TURNS={in_turns}"]
        shared = (self.rows + 2 * stages * self.keys) * d * 2 + (1 + 4 * stages) * 8
        super().__init__(driver, "attention_prefill_hopper", defines, shared, (consumers + 1) * 128)

    def map(self, tensor, box):
        """Of [heads, rows, d]."""
        raw = (u64 * 24)()
        at = (ctypes.addressof(raw) + 63) // 64 * 64
        heads, rows, d = tensor.shape
        sizes, strides = (u64 * 3)(d, rows, heads), (u64 * 2)(d * 2, rows * d * 2)
        window, steps = (u32 * 3)(64, box, 1), (u32 * 3)(1, 1, 1)
        address = ctypes.c_void_p(tensor.data_ptr())
        bf16, swizzle, promotion = 9, 3, 2
        encode = self.driver.cuTensorMapEncodeTiled
        call("tensor map", encode(ctypes.c_void_p(at), bf16, 3, address, sizes, strides, window, steps, 0, swizzle, promotion, 0))
        return TensorMap(*TensorMap.from_address(at))

    def run(self, query, key, value, rest):
        params = Maps(**rest)
        params.query = self.map(query, self.rows)
        params.past_key = params.own_key = self.map(key, self.keys)
        params.past_value = params.own_value = self.map(value, self.keys)
        self.launch(-(-params.rows // self.rows), len(query), params)


def seconds(work):
    work()
    times = []
    for _ in range(3):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        work()
        marks[1].record()
        torch.cuda.synchronize()
        times.append(marks[0].elapsed_time(marks[1]) / 1e3)
    return statistics.median(times)


def contenders(driver, d, memory, shape):
    """Functions by name, each computing attention of a shape."""
    kv_heads, tokens, past = shape
    keys = past or tokens
    query, key, value = (memory[i][: n * d].view(-1, rows, d) for i, (n, rows) in enumerate(
        [(GROUP * kv_heads * tokens, GROUP * tokens), (kv_heads * keys, keys), (kv_heads * keys, keys)]))
    # All keys are of one piece: the past, or, causal, the step's own.
    rest = dict(out=memory[3].data_ptr(), q_start=past, past_to=past, own_from=past, own_to=past or tokens)
    rest |= dict(out_stride=kv_heads * GROUP * d, rows=tokens * GROUP, group=GROUP, first=1, last=1)
    rest |= dict(scale_log2=1.4426950408889634 / d**0.5)

    def torch_by(backend):
        def work():
            with sdpa_kernel(backend):
                heads = query.view(1, GROUP * kv_heads, tokens, d)
                functional.scaled_dot_product_attention(heads, key[None], value[None], is_causal=not past, enable_gqa=True)
        return work

    found = {"cudnn": torch_by(SDPBackend.CUDNN_ATTENTION), "flash": torch_by(SDPBackend.FLASH_ATTENTION)}
    for name, kernel in driver.items():
        found[name] = lambda kernel=kernel: kernel.run(query, key, value, rest)
    return found


def rates(kernels, d, memory, shape):
    kv_heads, tokens, past = shape
    flop = 4 * tokens * (past or tokens) * GROUP * kv_heads * d * (1 if past else 0.5)
    row = {}
    for _ in range(2):
        for name, work in contenders(kernels, d, memory, shape).items():
            try:
                row.setdefault(name, []).append(flop / seconds(work) / 1e12)
            except RuntimeError as error:  # torch has no such kernel for this head dimension
                row[name] = []
                print(f"{name}: {str(error).splitlines()[0][:100]}")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head_dims", nargs="*", type=int, default=[128, 64, 256, 96])
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no shape after so many")
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    driver, begun, figures = ctypes.CDLL("libcuda.so.1"), time.time(), []
    for d in args.head_dims:
        kernels = {"portable": Portable(driver, d)}
        if d in HOPPER:
            kernels["hopper"] = Hopper(driver, d)
        sizes = [max(GROUP * h * r for h, r, _ in SHAPES), max(h * (p or r) for h, r, p in SHAPES)]
        memory = [torch.randn(n * d, device="cuda", dtype=torch.bfloat16) for n in (sizes[0], sizes[1], sizes[1], sizes[0])]
        for shape in SHAPES:
            if time.time() - begun > args.seconds:
                break
            row = rates(kernels, d, memory, shape)
            figures.append(dict(head_dim=d, kv_heads=shape[0], tokens=shape[1], past=shape[2], tflops=row))
            text = ", ".join(f"{name} " + "/".join(f"{x:.0f}" for x in xs) for name, xs in row.items())
            best = {name: max(xs, default=0.0) for name, xs in row.items()}
            if best["flash"]:
                text += f" | portable {best['portable'] / best['flash']:.2f} of flash"
            if best["cudnn"] and "hopper" in best:
                text += f", hopper {best['hopper'] / best['cudnn']:.2f} of cudnn"
            print(f"d {d:3} kv_heads {shape[0]} tokens {shape[1]:5} past {shape[2]:7}: {text}", flush=True)
        del memory
        torch.cuda.empty_cache()
    if args.json:
        json.dump(dict(device=torch.cuda.get_device_name(), torch=torch.__version__, rows=figures), open(args.json, "w"))


main()

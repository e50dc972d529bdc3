#!/usr/bin/env python3
"""Makes the goldens of crates/headinfer-core/tests/goldens: small models with random weights of every family, and
the logits that Hugging Face transformers computes from them.

    python3 tools/golden.py [--out DIR] [NAME ...]

Each folder holds config.json, the weights (safetensors), and golden.safetensors with
    ids         i32 [n]          the text
    logits_f32  f32 [rows, v]    of its last rows, f32 arithmetic on the stored weights
    logits_bf16 f32 [rows, v]    the same by transformers in bf16: half of the error that is allowed
    greedy      i32 [m]          greedy continuation of the f32 run
    margin      f32 [m]          lead of each over the runner-up

Last run with torch 2.11.0 (CPU) and transformers 5.17.0. Same versions, same bytes.
"""

import argparse
import json
import math
import pathlib
import zlib

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 300  # past one tile of 256 and several chunks of 64
ROWS = 40
GREEDY = 12
SHAPE = dict(vocab_size=144, hidden_size=48, intermediate_size=80, num_hidden_layers=2)


def rope(kind, theta=10000.0, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(factor=4.0, original_max_position_embeddings=64)


def heads(q, kv, dim):
    return dict(num_attention_heads=q, num_key_value_heads=kv, head_dim=dim)


# name: (config class, options); options that start with an underscore are this script's own.
CASES = {
    "llama-mha": ("Llama", heads(4, 4, 12) | rope("default")),
    "llama-gqa": ("Llama", heads(6, 2, 16) | rope("default", 500000.0)),
    "llama-one-kv-head": ("Llama", heads(4, 1, 16) | rope("default")),
    "llama-odd-heads": ("Llama", heads(9, 3, 10) | rope("default") | dict(hidden_size=72)),
    "llama-wide-heads-tied": ("Llama", heads(3, 3, 64) | rope("default") | dict(tie_word_embeddings=True)),
    "llama-biases": ("Llama", heads(4, 2, 24) | rope("default") | dict(attention_bias=True, mlp_bias=True)),
    "llama-linear": ("Llama", heads(4, 2, 12) | rope("linear", factor=4.0)),
    "llama-llama3": ("Llama", heads(4, 2, 32) | rope("llama3", 500000.0, **LLAMA3)),
    "llama-yarn": ("Llama", heads(4, 2, 32) | rope("yarn", **YARN)),
    "llama-yarn-options": (
        "Llama",
        heads(2, 1, 48)
        | rope("yarn", beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.9, truncate=False, **YARN),
    ),
    "llama-f16": ("Llama", heads(4, 2, 16) | rope("default") | dict(_dtype="float16")),
    "llama-f32-sharded-v4": (
        "Llama",
        heads(4, 2, 16) | rope("llama3", **LLAMA3) | dict(_dtype="float32", _shards=3, _version=4),
    ),
    "mistral-window": ("Mistral", heads(4, 2, 16) | rope("default") | dict(sliding_window=70)),
    "mistral-no-window-v4": (
        "Mistral",
        heads(8, 2, 8) | rope("default", 1e6) | dict(sliding_window=None, _version=4),
    ),
    "qwen2": ("Qwen2", heads(6, 2, 8) | rope("default", 1e6)),
    "qwen2-windows-yarn": (
        "Qwen2",
        heads(4, 1, 12)
        | rope("yarn", 1e6, **YARN)
        | dict(use_sliding_window=True, sliding_window=50, max_window_layers=1, num_hidden_layers=3),
    ),
    "qwen3": ("Qwen3", heads(4, 2, 32) | rope("default", 1e6)),
    "qwen3-tied-linear": (
        "Qwen3",
        heads(5, 5, 16) | rope("linear", factor=2.0) | dict(tie_word_embeddings=True, attention_bias=True),
    ),
}


def make(name, out):
    family, options = CASES[name]
    own = {k[1:]: v for k, v in options.items() if k.startswith("_")}
    options = {k: v for k, v in options.items() if not k.startswith("_")}
    config_class = getattr(transformers, family + "Config")
    config = config_class(**(SHAPE | dict(max_position_embeddings=512, bos_token_id=1, eos_token_id=2) | options))
    dtype = getattr(torch, own.get("dtype", "bfloat16"))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, generator)
    model = model.to(dtype)
    ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=generator)

    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    shard_bytes = sum(p.numel() * p.element_size() for p in model.parameters()) // own.get("shards", 1) + 1
    model.save_pretrained(folder, max_shard_size=shard_bytes if "shards" in own else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    golden = run(folder, ids)
    if own.get("version") == 4:
        as_version_4(folder / "config.json")
    save_file(golden, folder / "golden.safetensors")
    norm = golden["logits_f32"].norm()
    error = (golden["logits_bf16"] - golden["logits_f32"]).norm() / norm
    margin = golden["margin"]
    print(f"{name:<24} bf16 error {error:.2e}  logits {norm / math.sqrt(golden['logits_f32'].numel()):.2f} rms"
          f"  margins {margin.min():.3f}..{margin.max():.3f}")


@torch.no_grad()
def fill(model, generator):
    """Weights that make attention sharp and keep the stream's size, where an initialiser's would not."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.normal_(0.0, 0.2, generator=generator)
        elif p.dim() == 1:
            p.normal_(1.0, 0.2, generator=generator)
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.0
            p.normal_(0.0, gain / math.sqrt(p.shape[1]), generator=generator)


@torch.no_grad()
def run(folder, ids):
    # Loaded anew for each type: casting a model rounds its rotary frequencies too.
    def logits(dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        return lambda ids: model.eval()(ids, use_cache=False).logits[0].float()

    exact = logits(torch.float32)
    greedy, margin, text = [], [], ids
    for _ in range(GREEDY):
        top = exact(text)[-1].topk(2)
        greedy.append(int(top.indices[0]))
        margin.append(float(top.values[0] - top.values[1]))
        text = torch.cat([text, top.indices[:1].view(1, 1)], dim=1)
    return dict(
        ids=ids[0].to(torch.int32),
        logits_f32=exact(ids)[-ROWS:].contiguous(),
        logits_bf16=logits(torch.bfloat16)(ids)[-ROWS:].contiguous(),
        greedy=torch.tensor(greedy, dtype=torch.int32),
        margin=torch.tensor(margin),
    )


def as_version_4(path):
    """Rewrites a config of transformers 5 as version 4 wrote it."""
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=root / "crates/headinfer-core/tests/goldens")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases to make; all when none is given")
    args = parser.parse_args()
    unknown = set(args.names) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for name in args.names or CASES:
        make(name, args.out)


if __name__ == "__main__":
    main()

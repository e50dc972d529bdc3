#!/usr/bin/env python3
"""Holds random configurations of every family against transformers: `tools/golden_fuzz.py --binary HEADINFER --count 60`.

Each is drawn from the seed: family, heads, rope kind and its options, windows, biases, ties, file types and shards, the form
of config.json (as this transformers saves it, and as versions 4 and 5 write it by hand, with fields absent, null or of no
meaning), the text's length, and how `headinfer logits` is to place and cut the work. A small model of random weights is
saved, transformers runs it in f32 and in bf16 from the very folder that headinfer is given, and

  ok       the relative error of our logits against f32 is at most twice that of bf16, and the greedy continuation is the
           same as long as its margins are above the error
  theirs   transformers itself fails on it (4.57 does on a few), so there is nothing to compare with
  refused  one in twelve has something that is not supported, and must be refused with exit code 4 by the field's name
  WRONG    anything else

`--only N` runs one of them and `--keep DIR` keeps its folder. Needs torch, transformers (4.57 or 5; form 5 needs 5) and
safetensors.
"""

import argparse
import copy
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

from golden import fill

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
LENGTHS = [1, 2, 3, 17, 64, 65, 130, 257, 300, 420, 600]
ROWS = 40
GREEDY = 5
VERSION = int(transformers.__version__.split(".")[0])
# As long as a window or two, and past each of these.
ORIGINAL = [16, 64, 100, 128, 512]


def draw(r):
    """A configuration in the form of version 5, and what it is to be done with."""
    family = r.choice(list(FAMILIES))
    config = dict(architectures=[FAMILIES[family] + "ForCausalLM"], model_type=family)
    config |= heads(r, family)
    layers = r.randint(1, 4)
    config |= dict(
        vocab_size=r.randint(40, 400),
        intermediate_size=r.randint(30, 200),
        num_hidden_layers=layers,
        rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3, 0.05]),
        tie_word_embeddings=r.random() < 0.3,
        bos_token_id=r.choice([None, 1]),
        eos_token_id=r.choice([None, 2, [2, 3], -1]),
        dtype=r.choice(["bfloat16"] * 3 + ["float16", "float32"]),
    )
    if r.random() < 0.9:
        config["max_position_embeddings"] = r.choice([64, 200, 512, 4096])
    if r.random() < 0.7:
        config["hidden_act"] = r.choice(["silu", "silu", "swish"])
    if family in ("llama", "qwen3"):
        config["attention_bias"] = r.random() < 0.4
    if family == "llama":
        config["mlp_bias"] = r.random() < 0.4
    config |= windows(r, family, layers)
    if family == "mistral" and "layer_types" in config and config.get("head_dim") is None:
        # As the Ministral it then is, it needs this field.
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    config["rope_parameters"] = rope(r, config)
    # Fields that the family does not read.
    for key, value in dict(pretraining_tp=1, attention_dropout=0.0, use_cache=True, initializer_range=0.02).items():
        if r.random() < 0.3:
            config[key] = value
    for key, value in dict(mlp_bias=True, attention_bias=True, use_sliding_window=True, sliding_window=5).items():
        foreign = {"mlp_bias": ["mistral", "qwen2", "qwen3"], "attention_bias": ["mistral", "qwen2"]}
        if family in foreign.get(key, ["llama"]) and r.random() < 0.15:
            config[key] = value
    forms = ["saved", "4", "5"] if VERSION >= 5 else ["saved", "4"]
    if family == "mistral" and "layer_types" in config:
        # Saved, it has the name of a family that is not read.
        forms.remove("saved")
    run = dict(
        form=r.choice(forms),
        length=r.choice(LENGTHS),
        shards=r.choice([1, 1, 1, 2, 4]),
        head=r.choice(["tied", "tied", "both", "alone"]),
        options=options(r),
    )
    return config, run


def heads(r, family):
    kv, group = r.choice([1, 1, 2, 2, 3, 4, 5, 7]), r.choice([1, 1, 2, 3, 4, 5, 8])
    dim = r.choice([2, 4, 6, 8, 10, 16, 16, 18, 24, 32, 40, 48, 64, 80, 96, 128, 256])
    q = kv * group
    while q * dim > 2048:
        dim = r.choice([2, 4, 8, 16, 32])
    chosen = dict(num_attention_heads=q)
    if kv != q or r.random() < 0.5 or family != "llama":
        chosen["num_key_value_heads"] = kv
    if r.random() < 0.3 and family != "qwen3" and q * dim <= 400:
        chosen["hidden_size"] = q * dim
        if r.random() < 0.3 and (family == "llama" or (family == "mistral" and VERSION >= 5)):
            chosen["head_dim"] = None
    else:
        # Version 5 wants this multiple of Llama; the projections do not.
        chosen["hidden_size"] = q * r.randint(max(1, 24 // q), max(2, 200 // q))
        chosen["head_dim"] = dim
    return chosen


def windows(r, family, layers):
    size = r.choice([1, 2, 7, 50, 64, 100, 255, 256, 257, 1000])
    kinds = [r.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    if family == "mistral":
        some = r.choice([{}, dict(sliding_window=None)] + [dict(sliding_window=size)] * 4)
        # Version 5 takes such a Mistral for a Ministral, whose layers differ.
        listed = VERSION >= 5 and some.get("sliding_window") and r.random() < 0.3
        return some | (dict(layer_types=kinds) if listed else {})
    if family == "llama":
        return {}
    if r.random() < 0.4:
        return r.choice([{}, dict(use_sliding_window=False, sliding_window=size, max_window_layers=0)])
    chosen = dict(use_sliding_window=True, sliding_window=size)
    if r.random() < 0.5:
        return chosen | dict(max_window_layers=r.randint(0, layers + 1))
    return chosen | dict(layer_types=kinds)


def rope(r, config):
    kind = r.choice(["default", "linear", "llama3", "yarn", "yarn"])
    chosen = dict(rope_type=kind, rope_theta=r.choice([10000.0, 10000, 500000.0, 1e6, 1234.5, 100.0]))
    if kind == "default":
        return chosen
    chosen["factor"] = r.choice([1.0, 2, 4.0, 8.0, 32.0, 2.5])
    if kind == "linear":
        return chosen
    original = r.choice(ORIGINAL)
    if r.random() < 0.8:
        chosen["original_max_position_embeddings"] = original
    if kind == "llama3":
        low = r.choice([1.0, 1, 0.5, 2.0])
        return chosen | dict(low_freq_factor=low, high_freq_factor=low * r.choice([2, 4.0, 8]))
    # At this place version 5 prefers it, and version 4 does not look.
    if VERSION >= 5 and r.random() < 0.15:
        config["original_max_position_embeddings"] = r.choice(ORIGINAL)
    extras = dict(
        attention_factor=r.choice([1.0, 0.7, 1.3, None]),
        beta_fast=r.choice([32.0, 16, 4.0, 0, None]),
        beta_slow=r.choice([1.0, 2, 0.25, 0, None]),
        mscale=r.choice([1.0, 0.7, 0, None]),
        mscale_all_dim=r.choice([1.0, 0.9, 0, None]),
        truncate=r.choice([True, False, None]),
    )
    for key, value in extras.items():
        if r.random() < 0.35:
            chosen[key] = value
    if VERSION >= 5 and r.random() < 0.1 and "max_position_embeddings" in config:
        chosen["factor"] = None
    return chosen


def options(r):
    chosen = ["--chunk", str(r.choice([64, 64, 128, 256]))]
    if r.random() < 0.6:
        chosen += ["--placement", "offload", "--tile", str(r.choice([256, 512]))]
    if r.random() < 0.3:
        chosen += ["--weights", "stream"]
    if r.random() < 0.3:
        chosen += ["--heads-per-group", "1"]
    return chosen


# What is not supported, by the field that must be named.
def spoil(r, config):
    rope, kind = config["rope_parameters"], r.randrange(7)
    if kind == 0:
        config["hidden_act"] = r.choice(["gelu", "relu", "gelu_pytorch_tanh"])
        return "hidden_act"
    if kind == 1:
        rope |= dict(rope_type=r.choice(["dynamic", "longrope", "proportional", "mrope"]), factor=2.0)
        return "rope_type"
    if kind == 2:
        rope["partial_rotary_factor"] = 0.5
        return "partial_rotary_factor"
    if kind == 3:
        config["quantization_config"] = dict(quant_method="fp8")
        return "quantization_config"
    if kind == 4:
        config["architectures"] = [FAMILIES[config["model_type"]] + "ForSequenceClassification"]
        return "architectures"
    if kind == 5:
        config["model_type"] = r.choice(["gemma2", "phi3", "mixtral", "qwen3_moe"])
        return "model_type"
    config["num_attention_heads"] = 2 * config["num_attention_heads"] + 1
    config["num_key_value_heads"] = 2
    return "num_key_value_heads"


def as_version_4(r, config):
    """The same model as version 4 and the models of its time write it."""
    config = copy.deepcopy(config)
    rope = config.pop("rope_parameters")
    if (theta := rope.pop("rope_theta")) != 10000 or r.random() < 0.5:
        config["rope_theta"] = theta
    if rope["rope_type"] != "default":
        if r.random() < 0.3:
            rope["type"] = rope["rope_type"] if r.random() < 0.5 else rope.pop("rope_type")
        config["rope_scaling"] = rope
    elif r.random() < 0.5:
        config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    if r.random() < 0.3:
        del config["torch_dtype"]
    return config


def build(config, run, folder, seed):
    """Saves the model with random weights, then its config.json in the form wanted."""
    write(folder, as_version_4(random.Random(0), config) if VERSION < 5 else config)
    parsed = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(parsed)
    fill(model.float(), torch.Generator().manual_seed(seed))
    model = model.to(getattr(torch, config["dtype"]))
    shard_bytes = sum(p.numel() * p.element_size() for p in model.parameters()) // run["shards"] + 1
    model.save_pretrained(folder, max_shard_size=shard_bytes if run["shards"] > 1 else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    single = folder / "model.safetensors"
    if config["tie_word_embeddings"] and run["head"] != "tied" and single.exists():
        # Version 5 takes the embedding from either name.
        tensors = load_file(single)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if run["head"] == "alone" and VERSION >= 5:
            del tensors["model.embed_tokens.weight"]
        save_file(tensors, single, metadata=dict(format="pt"))
    r = random.Random(seed)
    if run["form"] == "4":
        write(folder, as_version_4(r, config))
    elif run["form"] == "5":
        write(folder, config)


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def truth(folder, ids):
    def logits(dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        return lambda ids: model.eval()(ids, use_cache=False).logits[0].float()

    exact, text, greedy, margins = logits(torch.float32), ids, [], []
    first = exact(ids)
    for step in range(GREEDY):
        top = (first if step == 0 else exact(text))[-1].topk(2)
        greedy.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        text = torch.cat([text, top.indices[:1].view(1, 1)], dim=1)
    return first[-ROWS:], logits(torch.bfloat16)(ids)[-ROWS:], greedy, margins


def ours(args, folder, ids, run):
    ids_file, out = folder / "ids.json", folder / "out.safetensors"
    ids_file.write_text(json.dumps(ids[0].tolist()))
    rows = min(ROWS, ids.shape[1])
    command = [args.binary, "-q", "logits", "-m", folder, "--ids", ids_file, "--out", out, "--device", args.device]
    command += ["--last", str(rows), "--greedy", str(GREEDY), *run["options"]]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return ran, load_file(out) if out.exists() else None


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def check(args, number, scratch):
    r = random.Random(f"{args.seed}/{number}")
    config, run = draw(r)
    field = None
    if r.randrange(12) == 0:
        run["form"], field = "5", spoil(r, config)
    what = describe(config, run)
    folder = pathlib.Path(scratch, str(number))
    folder.mkdir(parents=True, exist_ok=True)
    if field:
        write(folder, config)
        ran, _ = ours(args, folder, torch.zeros((1, 3), dtype=torch.int64), run)
        good = ran.returncode == 4 and field in ran.stderr and ran.stderr.startswith("error: ")
        return "refused" if good else "WRONG", f"{what} {field}", None, f"exit {ran.returncode} {one_line(ran.stderr)}"
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, config["vocab_size"], (1, run["length"]), generator=generator)
    try:
        build(config, run, folder, number)
        f32, bf16, greedy, margins = truth(folder, ids)
    except (TypeError, KeyError, ValueError) as e:
        return "theirs", what, None, one_line(repr(e))
    ran, out = ours(args, folder, ids, run)
    if ran.returncode != 0:
        return "WRONG", what, None, f"exit {ran.returncode} {one_line(ran.stderr)}"
    found, allowed = error(out["logits"], f32), error(bf16, f32)
    worst = float((out["logits"] - f32).abs().max())
    for mine, theirs, margin in zip(out["greedy"].tolist(), greedy, margins):
        if margin <= 4 * worst:
            break
        if mine != theirs:
            return "WRONG", what, found / allowed, f"greedy {mine}, not {theirs}, margin {margin:.3f}"
    numbers = f"{found:.2e}, bf16's {allowed:.2e}, ratio {found / allowed:.2f}"
    return "ok" if found <= 2 * allowed else "WRONG", what, found / allowed, numbers


def describe(config, run):
    q, rope = config["num_attention_heads"], config["rope_parameters"]
    kv = config.get("num_key_value_heads") or q
    dim = config.get("head_dim") or config["hidden_size"] // q
    window = config.get("sliding_window", "-")
    parts = [f"{config['model_type']:<7} {config['num_hidden_layers']}x{q}/{kv}x{dim:<3}", f"{rope['rope_type']:<8}"]
    parts.append(f"n={run['length']:<3} window={window!s:<4} {config['dtype']:<8} form {run['form']:<5}")
    return " ".join(parts)


def one_line(text):
    return " ".join(text.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one number of the seed")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for the models")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, seed {args.seed}")
    counts, worst = dict(ok=0, refused=0, theirs=0, WRONG=0), 0.0
    numbers = range(args.count) if args.only is None else [args.only]
    for number in numbers:
        with tempfile.TemporaryDirectory() as scratch:
            verdict, what, ratio, text = check(args, number, args.keep or scratch)
        counts[verdict] += 1
        worst = max(worst, ratio if ratio is not None and not math.isnan(ratio) else 0.0)
        print(f"{number:>3} {verdict:<8} {what} {text}", flush=True)
    theirs = f", {counts['theirs']} that transformers fails on" if counts["theirs"] else ""
    print(f"{counts['ok']} ok, {counts['refused']} refused by name{theirs}, {counts['WRONG']} wrong; worst ratio {worst:.2f}")
    sys.exit(counts["WRONG"] > 0)


if __name__ == "__main__":
    main()

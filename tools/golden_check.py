#!/usr/bin/env python3
"""Holds the goldens against a device through the command line: `tools/golden_check.py HEADINFER [--device cuda]`.

For each golden, the error of `headinfer logits` against transformers in f32 and, beside it, that of transformers in bf16: the
first may be at most twice the second. A model that the device refuses is named with its reason. Needs numpy and safetensors.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
from safetensors.numpy import load_file


def error(a, b):
    return float(numpy.linalg.norm(a.astype("f8") - b) / numpy.linalg.norm(b.astype("f8")))


def check(program, device, folder):
    golden = load_file(folder / "golden.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        ids, out = pathlib.Path(scratch, "ids.json"), pathlib.Path(scratch, "out.safetensors")
        ids.write_text(json.dumps(golden["ids"].tolist()))
        command = [program, "-q", "logits", "-m", folder, "--ids", ids, "--out", out, "--device", device]
        rows = str(len(golden["logits_f32"]))
        ran = subprocess.run([*command, "--last", rows, "--chunk", "64"], capture_output=True, text=True)
        if ran.returncode != 0:
            return None, ran.stderr.strip().splitlines()[0]
        ours = load_file(out)["logits"]
    found, allowed = error(ours, golden["logits_f32"]), error(golden["logits_bf16"], golden["logits_f32"])
    return found <= 2 * allowed, f"{found:.2e}, bf16's {allowed:.2e}, ratio {found / allowed:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    failed = 0
    for folder in sorted((root / "crates/headinfer-core/tests/goldens").iterdir()):
        good, text = check(args.program, args.device, folder)
        failed += good is False
        print(f"{folder.name:<24} {'refused' if good is None else 'ok' if good else 'WRONG':<8} {text}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How much sooner the next question on a document is answered: `python3 tests/store/followup.py target/release/headinfer`.

Asks a question on a document of 64 Ki tokens, then another one, restarts the server and asks a third. Then it gives
texts of 8 Ki tokens to a server that keeps them and one that does not, in turn, to see what keeping costs a prefill.
Prints one JSON object. What must hold: the second answer comes at least 20 times sooner than the first, the one after the restart at
least 10 times, and answers have the same bits wherever their prefix came from. The model is the built-in retrieval
model, on the CPU. Needs Python alone.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

OPTIONS = "serve -m builtin:retrieval --device cpu --port 0 --parallel 1".split()
NEW_TOKENS = 8
SOONER_MIN, SOONER_AFTER_RESTART_MIN = 20, 10


class Server:
    def __init__(self, program, context, store=None):
        options = [*OPTIONS, "--context", str(context)] + (["--cache-dir", store] if store else [])
        self.process = subprocess.Popen([program, *options], stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if line.startswith("serving "))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.address = line.split("http://")[-1].strip()
        while self.request("GET", "/health")[0] != 200:
            time.sleep(0.01)

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=3600)
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def ask(self, ids):
        """Seconds to the whole answer, what it says to the bit, and its cached tokens."""
        body = {"prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 3, "ignore_eos": True}
        begun = time.monotonic()
        status, answer = self.request("POST", "/v1/completions", json.dumps(body))
        seconds, answer = time.monotonic() - begun, json.loads(answer)
        assert status == 200, answer
        choice = answer["choices"][0]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return seconds, (choice["text"], choice["logprobs"]), cached

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0


def text(seed, tokens):
    return [3 + (i * i + 37 * i + seed * (i + 1)) % 500 for i in range(tokens)]


def follow_up(program, tokens):
    document, questions = text(1, tokens), [text(seed, 24) for seed in (2, 3, 4)]
    with tempfile.TemporaryDirectory() as store:
        server = Server(program, tokens + 512, store)
        first, _, _ = server.ask(document + questions[0])
        second, in_memory, cached = server.ask(document + questions[1])
        server.end()
        server = Server(program, tokens + 512, store)
        third, _, restored = server.ask(document + questions[2])
        # The second question again: its answer from memory and its answer from the disk are compared.
        _, from_disk, _ = server.ask(document + questions[1])
        server.end()
        kept = sum(entry.stat().st_size for entry in os.scandir(store))
    return {
        "document_tokens": tokens,
        "first_s": first,
        "second_s": second,
        "second_cached_tokens": cached,
        "second_sooner": first / second,
        "after_restart_s": third,
        "after_restart_cached_tokens": restored,
        "after_restart_sooner": first / third,
        "store_bytes": kept,
        "same_bits": in_memory == from_disk,
    }


def cost(program, tokens, rounds):
    """Least wall and processor seconds of one prefill, with and without a store, in turn."""
    seen = {"plain": [], "kept": []}
    answers = {}
    with tempfile.TemporaryDirectory() as store:
        servers = {"plain": Server(program, tokens + 512), "kept": Server(program, tokens + 512, store)}
        for seed in range(rounds):
            for name, server in servers.items():
                before = server.cpu_seconds()
                seconds, answer, cached = server.ask(text(10 + seed, tokens))
                assert cached == 0 and answers.setdefault(seed, answer) == answer
                seen[name].append((seconds, server.cpu_seconds() - before))
        for server in servers.values():
            server.end()
    least = {name: [min(column) for column in zip(*rows)] for name, rows in seen.items()}
    return {
        "prompt_tokens": tokens,
        "rounds": rounds,
        "plain_s": least["plain"][0],
        "kept_s": least["kept"][0],
        "plain_cpu_s": least["plain"][1],
        "kept_cpu_s": least["kept"][1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--tokens", type=int, default=64 << 10)
    parser.add_argument("--cost-tokens", type=int, default=8 << 10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = follow_up(arguments.program, arguments.tokens)
    result["keeping"] = cost(arguments.program, arguments.cost_tokens, arguments.rounds)
    result["build"] = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(json.dumps(result))
    sooner = result["second_sooner"] >= SOONER_MIN and result["after_restart_sooner"] >= SOONER_AFTER_RESTART_MIN
    sys.exit(0 if sooner and result["same_bits"] else 1)


if __name__ == "__main__":
    main()

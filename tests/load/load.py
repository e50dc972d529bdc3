#!/usr/bin/env python3
"""Many clients at once on a real server: `python3 tests/load/load.py target/release/headinfer --seconds 30`.

Short and long prompts, half of them questions on one document; a third of the clients leave before their answer is
complete. What must hold: no error but 429, every complete answer equal to the one given alone, memory flat, and
nothing at work when all have gone. The model is the built-in retrieval model, on the CPU. Needs Python alone.
"""

import argparse
import collections
import http.client
import json
import pathlib
import subprocess
import sys
import threading
import time

OPTIONS = "serve -m builtin:retrieval --device cpu --port 0 --context 4k --chunk 128 --parallel 4 --queue 24".split()
OPTIONS += "--gpu-memory 128MiB --host-memory 512MiB".split()
# From the second fifth on, in five minutes. In less the allocator has not yet seen all that comes at once.
GROWTH_MAX, GROWTH_SHORT_MAX, LONG_SECONDS = 1.02, 1.05, 300
PROMPTS = 24
NEW_TOKENS = 8


class Server:
    def __init__(self, program):
        self.process = subprocess.Popen([program, *OPTIONS], stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if line.startswith("serving "))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.address = line.split("http://")[-1].strip()
        while self.get("/health")[0] != 200:
            time.sleep(0.05)

    def connection(self):
        return http.client.HTTPConnection(self.address, timeout=120)

    def get(self, path):
        connection = self.connection()
        connection.request("GET", path)
        response = connection.getresponse()
        status, body = response.status, response.read().decode()
        connection.close()
        return status, body

    def post(self, path, body):
        connection = self.connection()
        connection.request("POST", path, json.dumps(body))
        return connection, connection.getresponse()

    def ask(self, path, body):
        connection, response = self.post(path, body)
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200, answer
        return answer

    def metric(self, start):
        page = self.get("/metrics")[1]
        return float(next(line for line in page.splitlines() if line.startswith("headinfer:" + start)).split()[-1])

    def memory_bytes(self):
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


def make_prompts(server):
    """Texts with chains of names in them: "@a b" tells that b follows a, and "@a" at the end asks for it."""
    word = lambda id: server.ask("/detokenize", {"tokens": [id]})["prompt"].strip()
    words = [word for word in map(word, range(2, 400)) if word.isalpha()]
    names = [word for word in words if len(word) == 6][:60]
    fillers = [word for word in words if len(word) == 4] or words

    def text(seed, length):
        chain = [names[(seed * 7 + i * 5) % len(names)] for i in range(4)]
        words = [fillers[(seed * 11 + i * i * 7) % len(fillers)] for i in range(length)]
        for i in range(3):
            at = (i + 1) * length // 5
            words[at : at + 2] = ["@" + chain[i], chain[i + 1]]
        return " ".join(words), chain

    document, chain = text(1, 1500)
    about = [f"{document} {text(i, 20)[0]} @{chain[i % 3]}" for i in range(PROMPTS // 2)]
    alone = [text(i + 100, 30 + 97 * i) for i in range(PROMPTS - len(about))]
    return about + [f"{text} @{chain[0]}" for text, chain in alone]


def body(prompt, stream):
    return {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}


class Load:
    def __init__(self, server, prompts, expected):
        self.server, self.prompts, self.expected = server, prompts, expected
        self.counts, self.lock = collections.Counter(), threading.Lock()
        self.wrong = []

    def count(self, what, detail=None):
        with self.lock:
            self.counts[what] += 1
            if detail is not None:
                self.wrong.append(f"{what}: {detail}")

    def client(self, number, end):
        turn = number
        while time.monotonic() < end:
            turn += 5
            try:
                self.visit(turn % len(self.prompts), stream=turn % 2 == 0, leave=number % 3 == 0, patience=turn % 4)
            except (OSError, http.client.HTTPException) as error:
                self.count("broken", repr(error))

    def visit(self, which, stream, leave, patience):
        connection, response = self.server.post("/v1/completions", body(self.prompts[which], stream or leave))
        with_answer = response.status == 200
        if not with_answer:
            told = response.read().decode()
            again = response.headers["Retry-After"]
            busy = response.status == 429 and again is not None
            self.count("turned away" if busy else "failed", None if busy else told)
            time.sleep(float(again or 1))
        elif leave:
            # At once, or after some of it.
            for _ in range(patience):
                response.readline()
            self.count("left")
        else:
            text = self.streamed(response) if stream else json.loads(response.read())["choices"][0]["text"]
            right = text == self.expected[which]
            self.count("right" if right else "wrong", None if right else f"{which}: {text!r}")
        response.close()
        connection.close()

    @staticmethod
    def streamed(response):
        text = ""
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return chunk["error"]["message"]
                text += chunk["choices"][0]["text"]
        return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--out", type=pathlib.Path, help="writes the figures as JSON")
    options = parser.parse_args()
    server = Server(options.program)
    try:
        failures = run(server, options)
    finally:
        server.process.terminate()
        code = server.process.wait(timeout=60)
    if code != 0:
        failures.append(f"the server ended with {code}")
    for failure in failures[:20]:
        print("error:", failure)
    return 1 if failures else 0


def run(server, options):
    prompts = make_prompts(server)
    expected = [server.ask("/v1/completions", body(prompt, False))["choices"][0]["text"] for prompt in prompts]
    assert len(set(expected)) > len(prompts) // 3, "the answers do not tell the prompts apart"
    load, begun = Load(server, prompts, expected), time.monotonic()
    end = begun + options.seconds
    clients = [threading.Thread(target=load.client, args=(n, end)) for n in range(options.clients)]
    memory = []
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        memory.append((time.monotonic() - begun, server.memory_bytes()))
        time.sleep(0.2)
    deadline = time.monotonic() + 60
    while server.metric("num_requests_running") or server.metric("num_requests_waiting"):
        assert time.monotonic() < deadline, "work is left when all have gone"
        time.sleep(0.05)
    # Everything has been seen by the first fifth; what still grows then grows for ever.
    peak = lambda a, b: max(bytes for at, bytes in memory if a <= at / options.seconds < b)
    warm, last = peak(0.2, 0.5), peak(0.8, 2)
    failures = load.wrong + [] if load.counts["right"] else load.wrong + ["no answer came"]
    if last > warm * (GROWTH_MAX if options.seconds >= LONG_SECONDS else GROWTH_SHORT_MAX):
        failures.append(f"memory grew from {warm} to {last} bytes")
    errors = server.metric('request_success_total{model_name="builtin:retrieval",finished_reason="error"}')
    if errors:
        failures.append(f"{errors:.0f} requests failed by the server's own count")
    counts = ", ".join(f"{count} {what}" for what, count in sorted(load.counts.items()))
    print(f"{options.clients} clients, {options.seconds:.0f} s: {counts}; ", end="")
    print(f"memory {warm / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB ({last / warm - 1:+.2%})")
    if options.out:
        command = [options.program, *"plan -m builtin:retrieval --device cpu --context 4k --json".split()]
        plan = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        seconds = range(int(options.seconds))
        figures = {
            "build": plan["build"],
            "clients": options.clients,
            "seconds": options.seconds,
            "counts": dict(sorted(load.counts.items())),
            "server_errors": errors,
            "memory_warm_bytes": warm,
            "memory_end_bytes": last,
            "growth": last / warm - 1,
            "memory_bytes_each_10_s": [next(m for at, m in memory if at >= second) for second in seconds[::10]],
            "failures": failures,
        }
        options.out.write_text(json.dumps(figures) + "\n")
    return failures


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The real `openai` client against a real server: `python3 tests/openai/suite.py target/release/headinfer`.

Most tests ask the built-in retrieval model, written to a folder and given a chat template. "@a b" in a text tells it
that b follows a; so a chain "@a b", "@b c", "@c d" hidden in filler makes "@a" continue as "b c d": every answer is known.
Answers that obey a grammar are asked of a model of random weights, whose tokens are characters: it would never say
such things on its own. Needs the package `openai` (last run with 3.54.0), which brings `pydantic`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import typing
import unittest
import urllib.request

import openai
import pydantic

KEY = "a-key-for-tests"
SCHEMA = "response_format.json_schema.schema"
TEMPLATE = (
    "{{ bos_token }} {% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.content or '' }} {% endfor %}"
)


SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
# As models of the Hermes family are asked to call.
CALLING = (
    "{% if tools %}{{ tools | tojson }} Answer <tool_call>{{ '{' }}...{{ '}' }}</tool_call> to call.{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}<|end|>{% endfor %}<|assistant|>"
)


def make_model(folder):
    command = [PROGRAM, "model", "make", "builtin:retrieval", "--out", folder]
    subprocess.run(command, check=True, capture_output=True)
    path = pathlib.Path(folder, "tokenizer_config.json")
    config = json.loads(path.read_text())
    config["chat_template"] = TEMPLATE
    path.write_text(json.dumps(config))
    vocabulary = json.loads(pathlib.Path(folder, "tokenizer.json").read_text())["model"]["vocab"]
    by_length = lambda n: sorted(word for word in vocabulary if len(word) == n and word.isalpha())
    return by_length(6), by_length(4)


def make_characters(folder):
    """Random weights, and a byte-level tokenizer of the printable ASCII characters."""
    subprocess.run([PROGRAM, "model", "make", "random:tiny:3", "--out", folder], check=True, capture_output=True)
    spelled = [chr(byte) for byte in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "vocab": {text: id for id, text in enumerate(spelled)}, "merges": []}
    file = {"version": "1.0", "model": model, "pre_tokenizer": level, "decoder": level, "added_tokens": [
        {"id": len(spelled) + i, "content": content, **flags} for i, content in enumerate(SPECIAL)]}
    pathlib.Path(folder, "tokenizer.json").write_text(json.dumps(file))
    config = {"eos_token": SPECIAL[0], "chat_template": CALLING}
    pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(config))


class Served(unittest.TestCase):
    """A server for the tests of a class."""

    model = None
    # Of `serve`, besides those that all servers here have.
    options = []

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        folder = str(pathlib.Path(cls.folder.name, "model"))
        cls.make(folder)
        command = [PROGRAM, "serve", "-m", folder, "--model-id", cls.model, "--device", "cpu", "--port", "0"]
        command += ["--context", "8k", "--chunk", "128", "--gpu-memory", "64MiB", "--host-memory", "256MiB"]
        command += ["--api-key", KEY, *cls.options]
        cls.server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = next(line for line in cls.server.stderr if line.startswith("serving "))
        threading.Thread(target=cls.server.stderr.read, daemon=True).start()
        cls.url = line.split()[-1]
        cls.client = openai.OpenAI(base_url=cls.url + "/v1", api_key=KEY, max_retries=0)
        cls.wait(lambda: cls.status("/health") == 200)

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        code = cls.server.wait(timeout=60)
        cls.server.stderr.close()
        cls.folder.cleanup()
        assert code == 0, code

    @classmethod
    def status(cls, path):
        try:
            return urllib.request.urlopen(cls.url + path).status
        except urllib.error.HTTPError as error:
            return error.code

    @staticmethod
    def wait(met):
        deadline = time.monotonic() + 60
        while not met():
            assert time.monotonic() < deadline, "never"
            time.sleep(0.05)

    def metric(self, start):
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": "Bearer " + KEY})
        page = urllib.request.urlopen(request).read().decode()
        return float(next(line for line in page.splitlines() if line.startswith("headinfer:" + start)).split()[-1])

    def chat(self, text, **options):
        options = {"max_tokens": 3, "temperature": 0, **options}
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

    def refused(self, param, **options):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat("x", **options)
        self.assertEqual(raised.exception.param, param)
        return str(raised.exception)


class Books(Served):
    """Texts whose continuations are known."""

    model = "retrieval"

    @classmethod
    def make(cls, folder):
        cls.names, cls.fillers = make_model(folder)

    def book(self, seed, length=200):
        """A text with a chain of four names in it, and the chain."""
        chain = [self.names[(seed * 37 + i * 5) % len(self.names)] for i in range(4)]
        words = [self.fillers[(seed * 11 + i * i * 7) % len(self.fillers)] for i in range(length)]
        for i in range(3):
            at = (i + 1) * length // 5
            words[at : at + 2] = ["@" + chain[i], chain[i + 1]]
        return " ".join(words), chain


class Suite(Books):
    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["retrieval"])
        self.assertEqual(self.client.models.retrieve("retrieval").object, "model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-9")

    def test_chat(self):
        text, (a, b, c, d) = self.book(1)
        answer = self.chat(f"{text} @{a}")
        self.assertEqual(answer.choices[0].message.content.split(), [b, c, d])
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_completions(self):
        text, (a, b, c, d) = self.book(2)
        answer = self.client.completions.create(
            model="retrieval", prompt=f"{text} @{a}", max_tokens=3, temperature=0, logprobs=2
        )
        self.assertEqual(answer.choices[0].text.split(), [b, c, d])
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual((answer.object, answer.usage.completion_tokens), ("text_completion", 3))
        logprobs = answer.choices[0].logprobs
        # This tokenizer's words begin with a space, the text does not.
        self.assertEqual("".join(logprobs.tokens).lstrip(), answer.choices[0].text)
        self.assertEqual([len(logprobs.token_logprobs), len(logprobs.text_offset)], [3, 3])
        self.assertEqual([len(top) for top in logprobs.top_logprobs], [2, 2, 2])

    def test_streaming(self):
        text, (a, b, c, d) = self.book(3)
        chunks = list(self.chat(f"{text} @{a}", stream=True, stream_options={"include_usage": True}))
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(content.split(), [b, c, d])
        self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
        self.assertEqual(chunks[-1].usage.completion_tokens, 3)
        pieces = self.client.completions.create(
            model="retrieval", prompt=f"{text} @{a}", max_tokens=3, temperature=0, stream=True
        )
        self.assertEqual("".join(piece.choices[0].text for piece in pieces).split(), [b, c, d])

    def test_streams_helper(self):
        """The client's own accumulator makes of a stream what is sent whole."""
        text, (a, _, _, d) = self.book(12)
        options = {"model": self.model, "messages": [{"role": "user", "content": f"{text} @{a}"}], "temperature": 0,
                   "max_completion_tokens": 9, "stop": d, "logprobs": True, "top_logprobs": 2}
        whole = self.client.chat.completions.create(**options)
        with self.client.chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertLessEqual({"content.delta", "content.done", "logprobs.content.done"}, kinds)
        for part in ("content", "role"):
            self.assertEqual(getattr(final.choices[0].message, part), getattr(whole.choices[0].message, part))
        self.assertEqual(final.choices[0].finish_reason, whole.choices[0].finish_reason)
        self.assertEqual(final.choices[0].logprobs.content, whole.choices[0].logprobs.content)
        self.assertEqual(final.usage.completion_tokens, whole.usage.completion_tokens)

    def test_headers(self):
        """A stream's headers come before its first token."""
        text, (a, *_) = self.book(13, 7000)
        request = self.client.chat.completions.with_streaming_response.create(
            model=self.model, messages=[{"role": "user", "content": f"{text} @{a}"}], max_tokens=1, stream=True,
            extra_body={"return_progress": True},
        )
        with request as response:
            self.assertEqual(response.headers["content-type"], "text/event-stream")
            begun = [line for line, _ in zip(response.iter_lines(), range(6)) if line.startswith("data: ")]
        progress = json.loads(begun[1].removeprefix("data: "))["prompt_progress"]
        self.assertEqual(sorted(progress), ["cache", "processed", "time_ms", "total"])
        self.assertLess(progress["processed"], progress["total"])

    def test_progress(self):
        text, (a, *_) = self.book(4, 1000)
        chunks = list(self.chat(f"{text} @{a}", stream=True, extra_body={"return_progress": True}))
        progress = [chunk.prompt_progress for chunk in chunks if getattr(chunk, "prompt_progress", None)]
        self.assertEqual(progress[-1]["processed"], progress[-1]["total"])
        self.assertGreater(len(progress), 5)

    def test_stop(self):
        text, (a, b, c, d) = self.book(5)
        for stop in (c, ["never", c]):
            answer = self.chat(f"{text} @{a}", stop=stop)
            self.assertEqual(answer.choices[0].message.content.split(), [b])
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            pieces = list(self.chat(f"{text} @{a}", stop=stop, stream=True))
            content = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            self.assertEqual((content.split(), pieces[-1].choices[0].finish_reason), ([b], "stop"))
        # Over the edge of two tokens, and within one.
        whole = self.chat(f"{text} @{a}").choices[0].message.content
        for stop in (f"{b[-2:]} {c[:2]}", c[2:4]):
            answer = self.client.completions.create(
                model=self.model, prompt=f"{text} @{a}", max_tokens=3, temperature=0, stop=stop
            )
            self.assertEqual(answer.choices[0].text.strip(), whole[: whole.find(stop)].strip())

    def test_seed(self):
        text, (a, *_) = self.book(6)
        hot = lambda seed: self.chat(text, seed=seed, temperature=2, max_tokens=12).choices[0].message.content
        self.assertEqual(hot(1), hot(1))
        self.assertGreater(len({hot(seed) for seed in range(4)}), 1)
        complete = lambda: self.client.completions.create(
            model=self.model, prompt=text, seed=5, temperature=2, top_p=0.9, max_tokens=12
        ).choices[0].text
        self.assertEqual(complete(), complete())

    def test_logprobs(self):
        text, (a, b, *_) = self.book(7)
        answer = self.chat(f"{text} @{a}", logprobs=True, top_logprobs=5)
        first = answer.choices[0].logprobs.content[0]
        self.assertEqual(first.token.strip(), b)
        self.assertEqual(bytes(first.bytes).decode(), first.token)
        self.assertEqual(len(first.top_logprobs), 5)
        self.assertEqual(first.top_logprobs[0].logprob, first.logprob)

    def test_tools(self):
        text, (a, b, *_) = self.book(8)
        tool = {"type": "function", "function": {"name": a, "parameters": {"type": "object", "properties": {}}}}
        with_tool = self.chat(text, tools=[tool])
        without = self.chat(text, tools=[tool], tool_choice="none")
        self.assertEqual(with_tool.usage.prompt_tokens, without.usage.prompt_tokens + 1)
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": a, "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "@" + a},
        ]
        answer = self.client.chat.completions.create(
            model="retrieval", messages=turns, tools=[tool], max_tokens=1, temperature=0
        )
        self.assertEqual(answer.choices[0].message.content.strip(), b)

    def test_usage(self):
        text, (a, b, *_) = self.book(9, 1000)
        first = self.chat(f"{text} @{a}").usage
        second = self.chat(f"{text} @{b}").usage
        self.assertEqual(first.total_tokens, first.prompt_tokens + first.completion_tokens)
        self.assertEqual(first.prompt_tokens, second.prompt_tokens)
        # Whole chunks of 128 of the 1002 tokens.
        self.assertEqual(second.prompt_tokens_details.cached_tokens, 896)
        *chunks, last = self.client.completions.create(
            model=self.model, prompt=text, max_tokens=2, stream=True, stream_options={"include_usage": True}
        )
        self.assertEqual({chunk.usage for chunk in chunks}, {None})
        self.assertEqual((last.choices, last.usage.completion_tokens), ([], 2))
        self.assertIsNone(list(self.chat("x", stream=True))[-1].usage)

    def test_errors(self):
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.url + "/v1", api_key="wrong", max_retries=0).models.list()
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.completions.create(model="gpt-9", prompt="x")
        self.assertEqual(raised.exception.code, "model_not_found")
        for options, param in (
            ({"temperature": 3}, "temperature"),
            ({"n": 2}, "n"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"max_tokens": 100_000}, "messages"),
        ):
            self.refused(param, **options)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat("x " * 9000)
        self.assertEqual((raised.exception.code, raised.exception.type),
                         ("context_length_exceeded", "invalid_request_error"))
        with self.assertRaises(openai.BadRequestError):
            self.chat("x", extra_headers={"Content-Type": "application/json"}, extra_body={"messages": []})
        with self.assertRaises(openai.APIStatusError) as raised:
            self.chat("x", extra_headers={"Content-Type": "text/plain"})
        self.assertEqual(raised.exception.status_code, 415)
        # Words are no JSON: known before any work is done.
        json_schema = {"name": "n", "schema": {"type": "integer"}}
        self.refused(SCHEMA, response_format={"type": "json_schema", "json_schema": json_schema})

    def test_cancellation(self):
        text, (a, *_) = self.book(10, 7000)
        aborted = 'request_success_total{model_name="retrieval",finished_reason="abort"}'
        before = self.metric(aborted)
        stream = self.chat(f"{text} @{a}", stream=True, max_tokens=1000)
        next(iter(stream))
        stream.close()
        self.wait(lambda: self.metric(aborted) == before + 1)
        # Who has no patience for a whole answer: it may not even have begun.
        finished = lambda: sum(
            self.metric(aborted.replace("abort", reason)) for reason in ("stop", "length", "error")
        )
        before = finished()
        with self.assertRaises(openai.APITimeoutError):
            self.chat(f"{self.book(14, 7000)[0]} @{a}", max_tokens=1000, timeout=0.3)
        self.wait(lambda: self.metric("num_requests_running") + self.metric("num_requests_waiting") == 0)
        self.assertEqual(finished(), before)

    def test_session(self):
        text, (a, b, c, d) = self.book(11, 7000)
        ask = lambda: self.chat(
            f"{text} @{a}", stream=True, extra_body={"return_progress": True}, extra_headers={"X-Session-Id": "s 1"}
        )
        first = ask()
        begun = next(chunk for chunk in first if getattr(chunk, "prompt_progress", None))
        first.close()
        chunks = list(ask())
        self.assertEqual({chunk.id for chunk in chunks}, {begun.id})
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        self.assertEqual(content.split(), [b, c, d])


class Busy(Books):
    """A server with room for one at work and one who waits."""

    options = ["--parallel", "1", "--queue", "1"]

    def test_rate_limit(self):
        text, (a, b, *_) = self.book(1, 7000)
        streams = [self.chat(f"{text} @{a}", stream=True, max_tokens=1000) for _ in range(2)]
        with self.assertRaises(openai.RateLimitError) as raised:
            self.chat("x")
        self.assertEqual(raised.exception.response.headers["retry-after"], "1")
        self.assertEqual(raised.exception.type, "rate_limit_error")
        # The client comes again when it is told to.
        leaving = threading.Timer(0.2, lambda: [stream.close() for stream in streams])
        leaving.start()
        patient = self.client.with_options(max_retries=20)
        short = self.book(2)[0]
        answer = patient.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": short}], max_tokens=1
        )
        self.assertEqual(answer.usage.completion_tokens, 1)
        leaving.join()


class City(pydantic.BaseModel, extra="forbid"):
    name: typing.Literal["Oslo", "Rome"]
    rank: int = pydantic.Field(ge=1, le=9)
    capital: bool


class Grammar(Served):
    model = "characters"

    @classmethod
    def make(cls, folder):
        make_characters(folder)

    def ask(self, seed, **options):
        return self.chat("Which?", max_tokens=400, temperature=2, seed=seed, **options)

    def test_json_schema(self):
        cities = set()
        for seed in range(6):
            answer = self.client.chat.completions.parse(
                model=self.model, messages=[{"role": "user", "content": "Which?"}], response_format=City,
                max_tokens=400, temperature=2, seed=seed,
            )
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            cities.add(answer.choices[0].message.parsed.name)
        self.assertEqual(cities, {"Oslo", "Rome"})

    def test_json_object(self):
        content = self.ask(1, response_format={"type": "json_object"}).choices[0].message.content
        self.assertTrue(content.startswith("{"), content)

    def test_unsupported_schema(self):
        for schema, word in (({"not": {}}, "not"), ({"type": "string", "pattern": "("}, "(")):
            json_schema = {"name": "n", "schema": schema}
            told = self.refused(SCHEMA, response_format={"type": "json_schema", "json_schema": json_schema})
            self.assertIn(word, told)

    def test_tools(self):
        tools = [
            {"type": "function", "function": {"name": "weather", "parameters": City.model_json_schema()}},
            {"type": "function", "function": {"name": "time"}},
        ]
        named = {"type": "function", "function": {"name": "weather"}}
        for seed in range(4):
            choice = self.ask(seed, tools=tools, tool_choice=named).choices[0]
            self.assertEqual(choice.finish_reason, "tool_calls")
            self.assertIsNone(choice.message.content)
            [call] = choice.message.tool_calls
            self.assertEqual(call.function.name, "weather")
            City.model_validate_json(call.function.arguments)
            with self.client.chat.completions.stream(
                model=self.model, messages=[{"role": "user", "content": "Which?"}], tools=tools, tool_choice=named,
                max_tokens=400, temperature=2, seed=seed,
            ) as stream:
                [streamed] = stream.get_final_completion().choices[0].message.tool_calls
            self.assertEqual(streamed.function.arguments, call.function.arguments)
        called = {self.ask(seed, tools=tools, tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls[0].function.name
                  for seed in range(8)}
        self.assertEqual(called, {"weather", "time"})
        self.assertIsNone(self.ask(1, tools=tools, tool_choice="none").choices[0].message.tool_calls)
        self.refused("tool_choice", tools=tools, tool_choice={"type": "function", "function": {"name": "no"}})

    def test_strict_tools(self):
        tool = openai.pydantic_function_tool(City, name="city")
        self.assertTrue(tool["function"]["strict"])
        for seed in range(3):
            answer = self.client.chat.completions.parse(
                model=self.model, messages=[{"role": "user", "content": "Which?"}], tools=[tool],
                tool_choice="required", parallel_tool_calls=False, max_tokens=400, temperature=2, seed=seed,
            )
            [call] = answer.choices[0].message.tool_calls
            self.assertIsInstance(call.function.parsed_arguments, City)
        # Free to call or not: what it says is text, for such a model does not hit upon a call.
        free = self.ask(1, tools=[tool], parallel_tool_calls=False).choices[0]
        self.assertIn(free.finish_reason, ("stop", "length"))
        self.assertTrue(free.message.content)
        bad = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
        self.assertIn("not", self.refused("tools", tools=[bad]))

    def test_tool_deltas(self):
        """Deltas begin with what is called, and go on with arguments alone."""
        tools = [openai.pydantic_function_tool(City, name="city")]
        chunks = list(self.ask(1, tools=tools, tool_choice="required", parallel_tool_calls=False, stream=True))
        first, *rest = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
        self.assertEqual((first.index, first.type, first.function.name, first.function.arguments),
                         (0, "function", "city", ""))
        self.assertTrue(first.id)
        self.assertEqual({(delta.index, delta.id, delta.function.name) for delta in rest}, {(0, None, None)})
        City.model_validate_json("".join(delta.function.arguments for delta in rest))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: suite.py PROGRAM [unittest options]")
    PROGRAM = sys.argv.pop(1)
    unittest.main()

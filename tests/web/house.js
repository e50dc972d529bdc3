// What the tests stand on: a server of the built-in retrieval model, texts with known answers, and a browser that
// tells of every error and every request.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const OPTIONS = "--device cpu --context 16k --chunk 64 --parallel 2 --threads 2 --gpu-memory 32MiB --host-memory 512MiB".split(" ");

/** A running server. */
export class Server {
  constructor(program, model, more = []) {
    Object.assign(this, { program, model, more, port: 0 });
  }

  async start() {
    const flags = ["serve", "-m", this.model, "--port", String(this.port), ...OPTIONS, ...this.more];
    const child = spawn(this.program, flags, { stdio: ["ignore", "ignore", "pipe"] });
    this.process = child;
    process.once("exit", () => child.kill("SIGKILL"));
    for await (const line of createInterface({ input: this.process.stderr })) {
      if (!line.startsWith("serving ")) continue;
      this.url = line.split(" ").at(-1);
      this.port = Number(new URL(this.url).port);
      break;
    }
    assert.ok(this.url, "the server says where it listens");
    this.process.stderr.resume();
    await until(async () => (await fetch(`${this.url}/health`)).ok, "the server is ready");
    return this;
  }

  async end(signal = "SIGINT") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = once(this.process, "exit");
    this.process.kill(signal);
    await ended;
  }

  async json(path, body, headers = {}) {
    const [method, type] = body === undefined ? ["GET", {}] : ["POST", { "Content-Type": "application/json" }];
    const sent = { method, headers: { ...type, ...headers }, body: body && JSON.stringify(body) };
    const response = await fetch(this.url + path, sent);
    assert.equal(response.status, 200, path);
    return response.json();
  }

  async metric(name) {
    const page = await (await fetch(`${this.url}/metrics`)).text();
    const line = page.split("\n").find((line) => line.startsWith(`headinfer:${name}{`));
    return Number(line.split(" ").at(-1));
  }
}

/** Looks again until it holds. */
export async function until(met, what) {
  const end = Date.now() + 30_000;
  for (;;) {
    if (await met()) return;
    assert.ok(Date.now() < end, `never: ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

/** The model's words: names of three syllables, fillers of two. */
export async function words(server) {
  const ids = Array.from({ length: 700 }, (_, i) => 2 + 3 * i);
  const all = (await server.json("/detokenize", { tokens: ids })).prompt.split(/\s+/);
  return { names: all.filter((word) => /^[a-z]{6}$/.test(word)), fillers: all.filter((word) => /^[a-z]{4}$/.test(word)) };
}

/** A text of so many words and a chain of four names hidden in it: "@a b" tells that b follows a. */
export function book({ names, fillers }, seed, length) {
  const chain = [0, 1, 2, 3].map((i) => names[(seed * 17 + i * 5) % names.length]);
  const text = Array.from({ length }, (_, i) => fillers[(seed * 131 + i * i * 7 + i * seed) % fillers.length]);
  for (let i = 0; i < 3; i++) text.splice(Math.floor((i + 1) * length / 5), 2, `@${chain[i]}`, chain[i + 1]);
  return { name: `book-${seed}.txt`, text: text.join(" "), chain };
}

/** A page, and what must not happen on it. */
export class Visit {
  static async open(browser, server, options = {}) {
    const visit = new Visit();
    visit.context = await browser.newContext(options);
    await visit.context.addInitScript(remember);
    visit.page = await visit.context.newPage();
    [visit.errors, visit.strangers] = [[], []];
    visit.page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) visit.errors.push(message.text());
    });
    visit.page.on("pageerror", (error) => visit.errors.push(String(error)));
    visit.context.on("request", (request) => {
      if (new URL(request.url()).origin !== server.url) visit.strangers.push(request.url());
    });
    visit.page.setDefaultTimeout(30_000);
    await visit.page.goto(server.url);
    return visit;
  }

  /** `expected`: what the browser may complain of. */
  async close(expected = /^$/) {
    await this.context.close();
    assert.deepEqual(this.errors.filter((error) => !expected.test(error)), [], "no errors on the console");
    assert.deepEqual(this.strangers, [], "no request to another host");
  }

  /** As a hand that drags files from a folder does. */
  async drop(...files) {
    await this.page.evaluate((files) => {
      const dataTransfer = new DataTransfer();
      for (const { name, text, bytes, size } of files) {
        const content = size ? new Uint8Array(size) : bytes ? new Uint8Array(bytes) : text;
        dataTransfer.items.add(new File([content], name));
      }
      for (const kind of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
      }
    }, files);
  }

  async bring(book) {
    await this.drop(book);
    await this.page.getByText(/\d tokens · /).waitFor();
    assert.equal(await this.text("#document-title"), book.name);
  }

  async ask(question, most = 3) {
    await this.page.locator("#most").evaluate((input, most) => {
      input.value = most;
      window.bars = [];
    }, most);
    await this.page.getByLabel("Question", { exact: true }).fill(question);
    await this.page.keyboard.press("Enter");
  }

  text(selector) {
    return this.page.locator(selector).innerText();
  }

  /** Words of the last answer, when it is complete. */
  async answer() {
    await this.page.locator("#work").waitFor({ state: "hidden" });
    assert.equal(await this.page.locator("#notice").isVisible(), false, "no error is shown");
    return (await this.text("#turns li:last-child .answer")).split(/\s+/);
  }

  /** What the bar showed first with at least `share` of it done, since the page was loaded or the last question asked. */
  async read(share) {
    const wanted = (share) => window.bars.find(({ value, max }) => value >= share * max);
    return (await this.page.waitForFunction(wanted, share, { polling: "raf" })).jsonValue();
  }

  /** All that the bar showed. */
  bars() {
    return this.page.evaluate(() => window.bars);
  }

  /** When the page says so; it may be for a moment only. */
  says(selector, pattern) {
    return this.page.locator(selector).filter({ hasText: pattern }).waitFor();
  }
}

/** Runs in each page before its own scripts: a prefill may be over before a test looks. */
function remember() {
  window.bars = [];
  new MutationObserver(() => {
    const { value, max } = document.getElementById("bar");
    if (max > 1 && value !== window.bars.at(-1)?.value) window.bars.push({ value, max });
  }).observe(document, { subtree: true, attributeFilter: ["value", "max"] });
}

export const launch = (executablePath) => chromium.launch({ executablePath, args: ["--no-sandbox"] });

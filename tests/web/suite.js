// The page of a real server in a real browser: `node tests/web/suite.js target/release/headinfer /usr/bin/chromium`, after
// `npm ci` in tests/web. The model is the built-in retrieval model, so every answer is known.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { book, launch, Server, until, Visit, words } from "./house.js";

const [program, executable] = process.argv.slice(2);
const KEY = "a-key-for-tests";
// So long that reading takes seconds, with two threads.
const LONG = 5000;
const TEMPLATE = "{{ bos_token }} {% for m in messages %}{{ m.content or '' }} {% endfor %}";

let [browser, server, known, folder] = [];

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "headinfer-web-"));
  [browser, server] = await Promise.all([launch(executable), new Server(program, "builtin:retrieval").start()]);
  known = await words(server);
});

after(async () => {
  await browser?.close();
  await server?.end();
  rmSync(folder, { recursive: true });
});

test("a dropped file is read with progress, and a second question on it is quick", async () => {
  const visit = await Visit.open(browser, server);
  const { chain, ...file } = book(known, 1, LONG);
  await visit.bring(file);
  const begun = Date.now();
  await visit.ask(`@${chain[0]}`);
  await visit.says("#work-facts", /of 5,00\d tokens · [\d,]+ tokens\/s · about \d+ s left/);
  await visit.says("#map-now", /(to the device|back to the host): layer \d+, heads? \d+/);
  await visit.says("#slots", /reading 5,00\d/);
  assert.match(await visit.page.title(), /^\d+ % · /);
  assert.deepEqual(await visit.answer(), chain.slice(1));
  const first = Date.now() - begun;
  const bars = (await visit.bars()).map((bar) => bar.value);
  assert.ok(bars.length > 10 && bars.every((bar, i) => i === 0 || bar > bars[i - 1]), `the bar goes on: ${bars}`);
  const again = Date.now();
  await visit.ask(`@${chain[1]}`, 2);
  assert.deepEqual(await visit.answer(), chain.slice(2));
  const second = Date.now() - again;
  assert.ok(second < first / 4, `${second} ms after ${first} ms`);
  assert.match(await visit.text("#turns li:last-child .note"), /5,00\d tokens read · 4,9\d\d of them from the cache · 2 written/);
  await visit.close();
});

test("a reload in the middle of a prefill goes on with it, and with the conversation", async () => {
  const visit = await Visit.open(browser, server);
  const { chain, ...file } = book(known, 2, LONG);
  const asked = await server.metric("prompt_tokens_total");
  await visit.bring(file);
  await visit.ask(`@${chain[0]}`);
  const left = await visit.read(0.3);
  await visit.page.reload();
  const found = await visit.read(0);
  assert.ok(found.value >= left.value, `${found.value} after ${left.value}`);
  assert.ok(found.value < found.max, "the reload came in the middle");
  assert.deepEqual(await visit.answer(), chain.slice(1));
  assert.equal(await visit.text("#turns .question"), `@${chain[0]}`);
  // It was asked for once.
  assert.equal(await server.metric("prompt_tokens_total"), asked + found.max);
  await visit.page.reload();
  assert.deepEqual(await visit.answer(), chain.slice(1));
  await visit.page.getByText(/\d tokens · /).waitFor();
  await visit.ask(`@${chain[2]}`, 1);
  assert.deepEqual(await visit.answer(), chain.slice(3));
  await visit.close();
});

test("what was stopped is taken up where it was", async () => {
  const visit = await Visit.open(browser, server);
  const { chain, ...file } = book(known, 3, LONG);
  await visit.bring(file);
  await visit.ask(`@${chain[0]}`);
  const left = await visit.read(0.3);
  await visit.page.getByRole("button", { name: "Stop" }).click();
  const resume = visit.page.getByRole("button", { name: "Resume" });
  await resume.waitFor();
  await until(async () => await server.metric("num_requests_running") === 0, "the engine rests");
  assert.match(await visit.text("#work-facts"), /of 5,00\d tokens were read/);
  // Stopped is stopped, reload or not.
  await visit.page.reload();
  await resume.click();
  const found = await visit.read(0);
  assert.ok(found.value >= left.value, `${found.value} after ${left.value}`);
  assert.deepEqual(await visit.answer(), chain.slice(1));
  assert.match(await visit.text("#turns li:last-child .note"), /of them from the cache/);
  await visit.close();
});

test("a server that is killed and started again is found again, and goes on from what it kept", async () => {
  const keeping = await new Server(program, "builtin:retrieval", ["--cache-dir", join(folder, "kept")]).start();
  const visit = await Visit.open(browser, keeping);
  const { chain, ...file } = book(known, 4, LONG);
  await visit.bring(file);
  await visit.ask(`@${chain[0]}`);
  await visit.read(0.1);
  await visit.says("#map-text", /On the disk: \d+\.\d [KM]iB/);
  await keeping.end("SIGKILL");
  await visit.page.getByText(/trying again in/).waitFor();
  await keeping.start();
  assert.deepEqual(await visit.answer(), chain.slice(1));
  assert.match(await visit.text("#turns li:last-child .note"), /5,00\d tokens read · [\d,]+ of them from the cache/);
  await visit.close(/ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET|EMPTY_RESPONSE)|404/);
  await keeping.end();
});

test("files that are no text or too long are refused in words", async () => {
  const visit = await Visit.open(browser, server);
  await visit.page.getByText("Ready").waitFor();
  const notice = async (pattern, ...files) => {
    await visit.drop(...files);
    await visit.page.getByRole("alert").filter({ hasText: pattern }).waitFor();
  };
  await notice(/a\.png is not UTF-8 text/, { name: "a.png", bytes: [0x89, 0x50, 0x4e, 0x47, 0xff] });
  await notice(/b\.txt is UTF-16 text/, { name: "b.txt", bytes: [0xff, 0xfe, 0x41, 0x00] });
  await notice(/c\.txt is empty/, { name: "c.txt", bytes: [] });
  await notice(/d\.bin is a binary file/, { name: "d.bin", bytes: [0x41, 0x00] });
  await notice(/e\.txt has 65\.0 MiB; this server takes 64\.0 MiB at most/, { name: "e.txt", size: 65 << 20 });
  await notice(/one file at a time/, { name: "f.txt", text: "a" }, { name: "g.txt", text: "b" });
  await notice(/h\.txt has 20,001 tokens; this server has room for 16,384/, { name: "h.txt", text: "x ".repeat(20_000) });
  await visit.ask("why?");
  await visit.page.getByRole("alert").filter({ hasText: /the context is 16384/ }).waitFor();
  assert.equal(await visit.page.getByLabel("Question", { exact: true }).inputValue(), "why?", "it can be asked otherwise");
  await visit.close(/400/);
});

test("text stays text, and line breaks stay", async () => {
  const visit = await Visit.open(browser, server);
  const markup = "<img src=x onerror=\"document.title = 'taken'\">";
  await visit.drop({ name: `${markup}.txt`, text: `two\nlines ${markup}` });
  await visit.page.getByLabel("Question", { exact: true }).fill(markup);
  await visit.page.keyboard.press("Shift+Enter");
  await visit.page.keyboard.type("and more");
  await visit.page.keyboard.press("Enter");
  await visit.page.locator("#turns .question").waitFor();
  assert.equal(await visit.text("#turns .question"), `${markup}\nand more`);
  assert.equal(await visit.text("#document-title"), `${markup}.txt`);
  assert.equal(await visit.page.locator("img").count(), 0);
  await visit.page.getByRole("button", { name: "New conversation" }).click();
  await visit.page.locator("#turns li").waitFor({ state: "detached" });
  assert.equal(await visit.text("#document-title"), `${markup}.txt`, "the document stays");
  await visit.page.getByRole("button", { name: "Remove" }).click();
  await visit.page.getByText("No document yet").waitFor();
  await until(async () => await server.metric("num_requests_running") === 0, "what ran was ended");
  await visit.close();
});

test("the map of a big model fits, says in words what it shows, and moves only for who likes motion", async () => {
  const visit = await Visit.open(browser, server, { reducedMotion: "reduce", colorScheme: "dark", viewport: { width: 390, height: 800 } });
  await visit.page.getByText("Nothing moves.").waitFor();
  const places = Array.from({ length: 80 }, (_, layer) => layer % 10 === 0 ? "dhhhhhcc" : "hhhhhhcc");
  const slot = { busy: true, tokens: 500_000, prefill: { done: 500_000, total: 900_000 }, moving: { in: [79, 2, 6] } };
  const lanes = Object.fromEntries(["compute", "in", "out", "host"].map((lane) => [lane, { bytes: 0, busy_s: 0 }]));
  const store = { bytes: 3 * 2 ** 30, behind_tokens: 8192, written_bytes: 5 << 28, read_bytes: 0 };
  const cache = { layers: 80, kv_heads: 8, bytes_per_token: 327_680, chunk: 8192, places, slots: [slot], lanes, store };
  const body = { state: "ready", model: "big", chat: true, context: 1 << 20, body_bytes_max: 1 << 26, waiting: 0, cache };
  await visit.page.route("**/cache", (route) => route.fulfill({ json: body }));
  await visit.page.getByText("big · 1,048,576 tokens of context").waitFor();
  const words = await visit.text("#map-text");
  assert.match(words, /^80 layers × 8 KV heads: 8 on the device, 472 in host memory, 160 in host memory, attended to by the CPU\./);
  assert.match(words, /Holds 500,000 tokens, 153 GiB; room for 1,048,576\. On the disk: 3\.0 GiB, 8,192 tokens still to be written\.$/);
  assert.equal(await visit.text("#map-now"), "Now to the device: layer 79, heads 2 to 5.");
  await visit.page.getByText("As a table").click();
  await visit.page.locator("#map-rows tr").nth(79).waitFor();
  // Of the ring, and of the corner of a cell that moves.
  const colours = () => visit.page.evaluate(() => {
    const map = document.getElementById("map");
    const pen = map.getContext("2d");
    pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--now").trim();
    const [x, y] = [Math.round(79 * map.clientWidth / 80), 2 * map.height / 8];
    const pixel = [...pen.getImageData(x, y, 1, 1).data].slice(0, 3);
    return [pen.fillStyle, `#${pixel.map((part) => part.toString(16).padStart(2, "0")).join("")}`];
  });
  await until(async () => {
    const [ring, drawn] = await colours();
    return ring === drawn;
  }, "the moving cell has its ring");
  const width = await visit.page.evaluate("document.documentElement.scrollWidth");
  assert.ok(width <= 390, `${width} px wide`);
  await visit.close();
});

test("a key is asked for, kept for the tab alone, and the page is worked by keys alone", async () => {
  const path = join(folder, "model");
  assert.equal(spawnSync(program, ["model", "make", "builtin:retrieval", "--out", path]).status, 0);
  const config = join(path, "tokenizer_config.json");
  writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(config)), chat_template: TEMPLATE }));
  const guarded = await new Server(program, path, ["--api-key", KEY]).start();
  try {
    for (const data of ["/cache", "/v1/models", "/metrics", "/page/", "/page/main.js/x"]) {
      assert.equal((await fetch(guarded.url + data)).status, 401, data);
    }
    const visit = await Visit.open(browser, guarded);
    const { page } = visit;
    const press = async (...keys) => { for (const key of keys) await page.keyboard.press(key); };
    const focused = () => page.evaluate(() => document.activeElement.id);
    // Early: it takes the browser a while to hand over such dialogs.
    const chooser = page.waitForEvent("filechooser");
    await page.getByText("This server asks for an API key").waitFor();
    assert.equal(await focused(), "key");
    await page.keyboard.type("wrong");
    await press("Enter");
    await page.getByText("That key is not right").waitFor();
    await page.keyboard.type(KEY);
    await press("Enter");
    await page.getByText("Ready").waitFor();
    assert.deepEqual(await page.evaluate(() => [JSON.stringify(localStorage).includes("a-key"), Object.values(sessionStorage)]), [false, [KEY]]);
    const { chain, text, name } = book(known, 5, LONG);
    assert.equal(await focused(), "question");
    await press("Shift+Tab");
    assert.equal(await focused(), "file");
    await press("Enter");
    await (await chooser).setFiles({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
    await page.getByText(/5,00\d tokens · /).waitFor();
    assert.equal(await focused(), "question");
    await page.keyboard.type(`@${chain[0]}`);
    await press("Tab", "Tab", "Enter", "Tab");
    assert.equal(await focused(), "most");
    await page.keyboard.type("3");
    await press("Shift+Tab", "Shift+Tab", "Enter");
    await visit.read(0.2);
    assert.equal(await focused(), "question");
    await press("Shift+Tab");
    assert.equal(await focused(), "stop");
    await press("Enter");
    await page.getByRole("button", { name: "Resume" }).waitFor();
    await until(async () => await focused() === "resume", "Resume has the focus");
    await press("Enter");
    assert.deepEqual(await visit.answer(), chain.slice(1));
    await visit.close(/401/);
  } finally {
    await guarded.end();
  }
});

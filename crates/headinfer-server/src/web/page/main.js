// The page: one conversation about one document.

import { count, read } from "./document.js";
import { conversation, freshName, keepConversation, keepDocument, kept } from "./keep.js";
import { draw, hurry, watch } from "./map.js";
import { bytes, number, tokens } from "./pace.js";
import { giveKey, Refusal, whenKeyIsWanted } from "./server.js";
import { announce, clear, cost, entry, notice, Panel } from "./talk.js";
import { end, follow } from "./work.js";

const at = (id) => document.getElementById(id);
// Asked again it would be refused again.
const REFUSED = [400, 404, 413];

// What the server last said of itself.
let server = null;
// { name, text, count }
let held = null;
// Turns: { name, question, answer, note, state: "running" | "stopped" | "done", most, temperature }.
let talk = { document: null, turns: [] };
let entries = [];
// Of the work under way.
let leaving = null;
// Ends a count of tokens that nobody waits for any more.
let counting = null;
const panel = new Panel();

/* The document */

async function take(file) {
  notice("");
  try {
    const found = await read(file, server?.body_bytes_max ?? null);
    await renew(null);
    held = { ...found, count: null };
    talk.document = { name: freshName(), title: found.name };
    save();
    showDocument();
    if (!await keepDocument(talk.document.name, found)) {
      notice("This browser keeps no document of this size: after a reload, choose it again.");
    }
    announce(`${found.name} is here`);
    at("question").focus();
    await countTokens();
  } catch (error) {
    notice(error.message);
  }
}

async function countTokens() {
  const counted = held;
  counting?.abort();
  counting = new AbortController();
  try {
    counted.count = await count(counted.text, counting.signal);
  } catch {
    // The facts are shown without.
    return;
  }
  if (counted !== held) return;
  showDocument();
  tooLong();
}

/** Says so before a long wait does. */
function tooLong() {
  if (held?.count && server?.context && held.count.count >= server.context) {
    notice(`${held.name} has ${held.count.exact ? "" : "about "}${tokens(held.count.count)}; this server has room for `
      + `${number(server.context)}, question and answer included. Start it with a larger --context.`);
  }
}

function showDocument() {
  at("remove").hidden = held === null && talk.document === null;
  at("document").toggleAttribute("data-empty", at("remove").hidden);
  at("file-label").textContent = at("remove").hidden ? "Choose a file" : "New document";
  if (held !== null) {
    const facts = [bytes(new Blob([held.text]).size)];
    if (held.count) facts.unshift(`${held.count.exact ? "" : "about "}${tokens(held.count.count)}`);
    at("document-title").textContent = held.name;
    at("document-facts").textContent = facts.join(" · ");
  } else if (talk.document !== null) {
    at("document-title").textContent = talk.document.title;
    at("document-facts").textContent = "Not kept by this browser: choose the file again to ask more.";
  } else {
    at("document-title").textContent = "No document yet";
    at("document-facts").textContent =
      "Drop a text file anywhere on this page, or choose one. It goes to this server alone.";
  }
}

/* The conversation */

function save() {
  if (!keepConversation(talk)) notice("This browser keeps nothing: after a reload this conversation is gone.");
}

/** A new conversation about the same document or none; what still runs is ended. */
async function renew(document) {
  if (leaving !== null) await stop();
  if (document === null) {
    counting?.abort();
    held = null;
  }
  talk = { document, turns: [] };
  entries = [];
  clear();
  panel.end();
  at("new").hidden = true;
  save();
}

async function restart(document) {
  notice("");
  await renew(document);
  showDocument();
  at("question").focus();
}

/** The JSON that asks turn `index`; null when the document it needs is not here. */
function body(index) {
  if (talk.document !== null && held === null) return null;
  const { most, temperature, question } = talk.turns[index];
  const before = talk.turns.slice(0, index).filter((turn) => turn.state === "done");
  const said = [...before.flatMap((turn) => [turn.question, turn.answer]), question];
  // First, so that all questions begin alike and share its prefill.
  if (held !== null) said[0] = `${held.text}\n\n${said[0]}`;
  const common = { temperature, stream: true, stream_options: { include_usage: true }, return_progress: true };
  if (most !== null) common.max_tokens = most;
  if (!server.chat) return JSON.stringify({ ...common, prompt: said.join("\n\n") });
  const messages = said.map((content, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content }));
  return JSON.stringify({ ...common, messages });
}

async function ask() {
  const question = at("question").value.trim();
  if (leaving !== null || question === "") return;
  if (server === null) return notice("The server has not answered yet.");
  if (talk.document !== null && held === null) return notice("Choose the document again: this browser did not keep it.");
  notice("");
  const most = at("most").valueAsNumber;
  const temperature = at("temperature").valueAsNumber;
  talk.turns.push({
    name: freshName(), question, answer: "", note: "", state: "running",
    most: most >= 1 ? most : null, temperature: temperature >= 0 ? temperature : 0,
  });
  const index = talk.turns.length - 1;
  const size = new Blob([body(index)]).size;
  if (size > server.body_bytes_max) {
    talk.turns.pop();
    return notice(`Document and question are ${bytes(size)} as JSON; this server takes ${bytes(server.body_bytes_max)}.`);
  }
  entries.push(entry(talk.turns[index]));
  at("question").value = "";
  // The button that was pressed can be pressed no more.
  at("question").focus();
  at("new").hidden = false;
  await work(index, false);
}

/** Follows a turn to its end. `asked`: the server may know it already. */
async function work(index, asked) {
  const [turn, shown] = [talk.turns[index], entries[index]];
  const control = new AbortController();
  const begun = performance.now();
  let usage = null;
  leaving = control;
  turn.state = "running";
  save();
  busy(true);
  shown.busy(true);
  shown.note("");
  panel.begin();
  const told = {
    phase: (word, detail) => panel.show(word, detail),
    restart: () => {
      turn.answer = "";
      shown.restart();
      panel.restart();
    },
    progress: (progress) => panel.read(progress),
    text: (piece) => {
      turn.answer += piece;
      shown.say(piece);
      panel.write(turn.answer.length);
    },
    usage: (used) => { usage = used; },
  };
  const question = { name: turn.name, path: server.chat ? "/v1/chat/completions" : "/v1/completions", body: () => body(index) };
  try {
    const reason = await follow(question, asked, told, control.signal);
    turn.note = cost(usage, asked ? null : (performance.now() - begun) / 1000, reason);
    turn.state = "done";
    panel.end();
    announce(`Answered: ${turn.answer.slice(0, 300)}`);
  } catch (error) {
    if (!control.signal.aborted) notice(error.message);
    if (error instanceof Refusal && REFUSED.includes(error.status)) return takeBack(turn, shown);
    turn.state = "stopped";
    turn.note = "Not finished.";
    rest();
  } finally {
    shown.note(turn.note);
    shown.busy(false);
    // A conversation that was left meanwhile is not to come back.
    if (talk.turns[index] === turn) save();
    leaving = null;
    busy(false);
  }
}

/** A question that is refused as it is: to be asked otherwise. */
function takeBack(turn, shown) {
  talk.turns.pop();
  entries.pop();
  shown.remove();
  panel.end();
  at("new").hidden = talk.turns.length === 0;
  if (at("question").value === "") at("question").value = turn.question;
  save();
}

function rest() {
  const { processed, total } = panel.progress ?? {};
  panel.rest(processed < total
    ? `${number(processed)} of ${tokens(total)} were read; they stay in the server's cache while nobody needs the room.`
    : "It can be taken up again.");
  announce("Stopped. Resume takes it up again.");
}

/** Ends the work on the server, too. */
async function stop() {
  const turn = talk.turns.at(-1);
  leaving?.abort();
  try {
    await end(turn.name);
  } catch (error) {
    notice(`The server was not told to stop: ${error.message}`);
  }
}

function busy(is) {
  hurry(is);
  at("send").disabled = is;
  at("file").disabled = is;
  at("remove").disabled = is;
}

/* The beginning */

async function restore() {
  const found = conversation();
  if (found === null) return;
  talk = found;
  entries = talk.turns.map(entry);
  at("new").hidden = talk.turns.length === 0;
  if (talk.document !== null) {
    const document = await kept(talk.document.name);
    held = document && { ...document, count: null };
  }
  showDocument();
  const last = talk.turns.at(-1);
  if (last?.state === "stopped") rest();
  if (last?.state === "running") work(talk.turns.length - 1, true);
  if (held !== null) countTokens();
}

function health(word, words) {
  at("health").dataset.state = word;
  at("health").textContent = words;
}

function heard(said) {
  const first = server === null;
  server = said;
  const words = { ready: "Ready", loading: "Loading the model", stopped: "Shutting down", failed: "The engine failed" };
  health(said.state, words[said.state]);
  at("model").textContent = said.context ? `${said.model} · ${tokens(said.context)} of context` : said.model;
  draw(said);
  if (first) {
    // A model without a template continues texts for as long as it is let.
    if (!said.chat) at("most").value = 128;
    restore();
  }
}

function unheard(error) {
  if (error instanceof Refusal) health("failed", error.message);
  else health("away", "The server cannot be reached");
}

function listen() {
  whenKeyIsWanted((wrong) => {
    at("key-form").hidden = false;
    if (wrong) at("key-why").textContent = "That key is not right: try again.";
    at("key").value = "";
    at("key").focus();
  });
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    at("key-form").hidden = true;
    giveKey(at("key").value.trim());
    at("question").focus();
  });
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  at("stop").addEventListener("click", async () => {
    await stop();
    at("resume").focus();
  });
  at("resume").addEventListener("click", () => {
    notice("");
    at("stop").hidden = false;
    at("stop").focus();
    work(talk.turns.length - 1, false);
  });
  at("new").addEventListener("click", () => restart(talk.document));
  at("remove").addEventListener("click", () => restart(null).then(() => keepDocument("", null)));
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    // The same file may be chosen again.
    if (file) take(file).finally(() => { at("file").value = ""; });
  });
  dropping();
}

function dropping() {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (on) => document.body.classList.toggle("dragging", on);
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false);
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    mark(false);
    const files = [...event.dataTransfer.files];
    if (leaving !== null) notice("Stop the work under way first.");
    else if (files.length !== 1) notice("Drop one file at a time.");
    else take(files[0]);
  });
}

listen();
watch(heard, unheard);

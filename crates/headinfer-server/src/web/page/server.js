// The server: requests with the key, what refusals say, and streams of events.

const KEY = "headinfer.key";
// Comments come every few seconds whatever the engine does: longer silence is a dead connection.
const SILENCE_MS = 30_000;

let key = stored();
let wanted = null;
let askForKey = () => {};

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** `ask(wrong)` is called when the server wants a key; `giveKey` answers. */
export function whenKeyIsWanted(ask) {
  askForKey = ask;
}

export function giveKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // Then it lasts as long as the page.
  }
  wanted?.give();
  wanted = null;
}

/** All requests wait for one key. */
function newKey() {
  if (wanted === null) {
    wanted = {};
    wanted.given = new Promise((give) => { wanted.give = give; });
    askForKey(key !== "");
  }
  return wanted.given;
}

/** The server answered, with words why not. */
export class Refusal extends Error {
  constructor(status, message, { code = null, after = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, after });
  }

  /** Asked again later, it may be served. */
  get passing() {
    return [408, 429, 503].includes(this.status);
  }
}

/** No answer, or one that ended before its end. */
export class Lost extends Error {}

async function refusal(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Something between here and the server answered in a language of its own.
  }
  const words = error?.message ?? `the server answered with status ${response.status}`;
  const after = Number(response.headers.get("retry-after")) || 0;
  return new Refusal(response.status, words, { code: error?.code, after });
}

/** A response that is a success. Throws `Refusal`, `Lost`, or an AbortError. */
export async function call(path, { method = "GET", body, session, signal } = {}) {
  for (;;) {
    const headers = {};
    if (key) headers["Authorization"] = `Bearer ${key}`;
    if (session) headers["X-Session-Id"] = session;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const used = key;
    let response;
    try {
      response = await fetch(path, { method, body, headers, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Lost("the server cannot be reached");
    }
    if (response.ok) return response;
    const refused = await refusal(response);
    if (refused.status !== 401) throw refused;
    // Another request may have been given a key while this one was refused.
    if (used === key) await newKey();
    signal?.throwIfAborted();
  }
}

/** The events of a stream as objects, up to its [DONE]; throws `Lost` when it ends without, and `Refusal` when it says so. */
export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const end = held.indexOf("\n\n");
      if (end < 0) {
        const piece = await read(reader, signal);
        held += piece;
        continue;
      }
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data:")) continue;
      const data = event.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw failure(chunk.error);
      yield chunk;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function failure({ message, type, code }) {
  return new Refusal(type === "server_error" ? 500 : 409, message, { code });
}

async function read(reader, signal) {
  let timer;
  const silence = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Lost("the server fell silent")), SILENCE_MS);
  });
  try {
    const { value, done } = await Promise.race([reader.read(), silence]);
    if (done) throw new Lost("the connection ended");
    return value;
  } catch (error) {
    if (signal?.aborted || error instanceof Lost) throw error;
    throw new Lost("the connection was lost");
  } finally {
    clearTimeout(timer);
  }
}

// One question from asking to its answer, over lost connections, a busy server and a restarted one. The server works
// on under the question's name: whoever comes back hears the answer from its beginning.

import { call, events, Lost, Refusal } from "./server.js";

const WAIT_MS = [500, 1000, 2000, 4000, 8000];
// An engine that fails at the same question again and again is left alone.
const FAULTS_MAX = 3;

/**
 * `question`: { name, path, body() } where body() is its JSON, or null when the document is no longer here. `asked`:
 * the server may know it already. `told`: { phase(word, detail), restart(), progress(p), text(piece), usage(u) }.
 * Returns why the answer ended; throws `Refusal`, or an AbortError when `signal` says so.
 */
export async function follow(question, asked, told, signal) {
  let known = asked;
  let faults = 0;
  for (let tries = 0; ; tries++) {
    try {
      const response = known ? await attach(question, signal) : null;
      if (response === null) told.phase("sending");
      const stream = response ?? await ask(question, signal);
      told.restart();
      told.phase("waiting");
      return await hear(stream, told, signal, () => { tries = 0; });
    } catch (error) {
      signal.throwIfAborted();
      const again = error instanceof Lost || (error instanceof Refusal && error.passing);
      const fault = error instanceof Refusal && error.status === 500 && ++faults < FAULTS_MAX;
      if (!again && !fault) throw error;
      // What failed would be heard again as it was: it must be asked anew.
      known = !fault;
      const wait = Math.max(WAIT_MS[Math.min(tries, WAIT_MS.length - 1)], 1000 * (error.after ?? 0));
      told.phase("lost", { why: error.message, wait });
      await sleep(wait, signal);
    }
  }
}

/** Ends the work; what was read stays in the server's cache. */
export async function end(name) {
  try {
    await call(path(name), { method: "DELETE" });
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return;
    throw error;
  }
}

const path = (name) => `/v1/sessions/${encodeURIComponent(name)}`;

async function attach(question, signal) {
  try {
    return await call(path(question.name), { signal });
  } catch (error) {
    // Never heard of, forgotten by a restart, or too long to be kept.
    if (error instanceof Refusal && [404, 410].includes(error.status)) return null;
    throw error;
  }
}

function ask(question, signal) {
  const body = question.body();
  if (body === null) throw new Refusal(410, "the server no longer knows this question: choose the document again");
  return call(question.path, { method: "POST", body, session: question.name, signal });
}

async function hear(response, told, signal, alive) {
  let reason = null;
  for await (const chunk of events(response, signal)) {
    alive();
    if (chunk.prompt_progress) told.progress(chunk.prompt_progress);
    if (chunk.usage) told.usage(chunk.usage);
    const choice = chunk.choices[0];
    const piece = choice?.delta?.content ?? choice?.text ?? "";
    if (piece !== "") told.text(piece);
    reason = choice?.finish_reason ?? reason;
  }
  return reason;
}

function sleep(ms, signal) {
  return new Promise((wake, fail) => {
    const stop = () => {
      clearTimeout(timer);
      fail(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      wake();
    }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}

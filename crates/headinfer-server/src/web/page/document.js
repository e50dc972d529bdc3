// A file that becomes text here, in the browser, and how many tokens that is.

import { call } from "./server.js";
import { bytes } from "./pace.js";

// Ids of longer texts would take longer to arrive than a look at their beginning is worth.
const COUNTED_CHARACTERS = 1 << 21;
const SAMPLE_CHARACTERS = 1 << 18;

/** { name, text } of a file; throws an Error in words. A request holds `most` bytes, null when that is not known. */
export async function read(file, most) {
  if (most !== null && file.size > most) {
    throw new Error(`${file.name} has ${bytes(file.size)}; this server takes ${bytes(most)} at most.`);
  }
  let content;
  try {
    content = new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} cannot be read: is it a folder, or was it moved?`);
  }
  if (content.length === 0) throw new Error(`${file.name} is empty.`);
  const [first, second] = content;
  if ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff)) {
    throw new Error(`${file.name} is UTF-16 text: save it as UTF-8 and drop it again.`);
  }
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(content);
  } catch {
    throw new Error(`${file.name} is not UTF-8 text. Export it as plain text in UTF-8 and drop that.`);
  }
  if (text.includes("\0")) throw new Error(`${file.name} is a binary file, not text.`);
  return { name: file.name, text };
}

/** { count, exact } of the text's tokens. */
export async function count(text, signal) {
  const exact = text.length <= COUNTED_CHARACTERS;
  const part = exact ? text : text.slice(0, SAMPLE_CHARACTERS);
  const body = JSON.stringify({ prompt: part });
  const response = await call("/tokenize", { method: "POST", body, signal });
  const { count } = await response.json();
  return { count: Math.round(count * text.length / part.length), exact };
}

// The live map: a cell for each (layer, KV head), coloured by where its K and V live, filled as far as the slot is,
// ringed while they move.

import { call } from "./server.js";
import { bytes, bytesPerSecond, number, tokens } from "./pace.js";

const at = (id) => document.getElementById(id);
const BUSY_MS = 250;
const IDLE_MS = 2000;
// A ring fades so slowly that an eye can follow the sweep.
const GLOW_MS = 900;
const WORDS = { d: "on the device", h: "in host memory", c: "in host memory, attended to by the CPU" };
const LANES = {
  in: "To the device", out: "Back to the host", compute: "Device reads", host: "CPU reads",
  written: "To the disk", read: "From the disk",
};
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let cache = null;
let context = 0;
let glow = new Map();
// { time, moved } of earlier looks.
let looks = [];
let hurried = false;
let wake = () => {};

/** Asks the server how it is, again and again, while anyone looks; `heard(answer)`, `unheard(error)`. */
export async function watch(heard, unheard) {
  for (;;) {
    let busy = false;
    try {
      const said = await (await call("/cache")).json();
      busy = said.cache?.slots.some((slot) => slot.busy) || said.state === "loading";
      heard(said);
    } catch (error) {
      unheard(error);
    }
    await new Promise((done) => {
      wake = done;
      setTimeout(done, busy || hurried ? BUSY_MS : IDLE_MS);
    });
    while (document.hidden) {
      await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    }
  }
}

/** Looks at once and often while something is under way here. */
export function hurry(on) {
  hurried = on;
  wake();
}

/** Shows what /cache said. */
export function draw(said) {
  ({ cache, context } = said);
  at("map-body").hidden = cache === null;
  if (cache === null) return;
  const time = performance.now();
  const slot = shownSlot();
  for (const [layer, head] of moving(slot)) glow.set(layer * cache.kv_heads + head, time);
  at("map-text").textContent = words(slot);
  at("map-now").textContent = now(slot);
  at("map").setAttribute("aria-label", `Map of ${cache.layers} layers by ${cache.kv_heads} KV heads`);
  for (const place of "hcd") {
    at("legend").querySelector(`[data-place=${place}]`).parentElement.hidden = !cache.places.join("").includes(place);
  }
  lanes(time);
  at("slots").replaceChildren(...cache.slots.map((each, i) => line("li", slotWords(each, i))));
  if (at("map-details").open) table();
  paint();
}

/** The one at work, else the fullest: placement is the same in all. */
function shownSlot() {
  const most = (slots) => slots.reduce((best, slot) => slot.tokens > best.tokens ? slot : best);
  const busy = cache.slots.filter((slot) => slot.busy);
  return most(busy.length > 0 ? busy : cache.slots);
}

/** [layer, head] of all that moves now. A backend that cannot tell moves every streamed head in each step. */
function* moving(slot) {
  if (slot.moving === null && slot.busy) {
    for (const [layer, places] of cache.places.entries()) {
      for (const [head, place] of [...places].entries()) if (place === "h") yield [layer, head];
    }
  }
  for (const lane of ["in", "out"]) {
    const [layer, start, end] = slot.moving?.[lane] ?? [0, 0, 0];
    for (let head = start; head < end; head++) yield [layer, head];
  }
}

function words(slot) {
  const all = cache.places.join("");
  const counts = Object.keys(WORDS).map((place) => [place, [...all].filter((other) => other === place).length]);
  const where = counts.filter(([, n]) => n > 0).map(([place, n]) => `${number(n)} ${WORDS[place]}`);
  const held = bytes(slot.tokens * cache.bytes_per_token);
  return `${cache.layers} layers × ${cache.kv_heads} KV heads: ${where.join(", ")}. `
    + `Holds ${tokens(slot.tokens)}, ${held}; room for ${number(context)}.${onDisk()}`;
}

/** Of a server that keeps sessions: they are copies, so they have no place on the map. */
function onDisk() {
  if (!cache.store) return "";
  const { bytes: held, behind_tokens: behind } = cache.store;
  return ` On the disk: ${bytes(held)}${behind > 0 ? `, ${tokens(behind)} still to be written` : ""}.`;
}

function now(slot) {
  if (!slot.busy) return "Nothing moves.";
  if (slot.moving === null) return "Every streamed head moves in each step.";
  const spots = ["in", "out"].filter((lane) => slot.moving[lane]).map((lane) => {
    const [layer, start, end] = slot.moving[lane];
    const heads = end - start === 1 ? `head ${start}` : `heads ${start} to ${end - 1}`;
    return `${LANES[lane].toLowerCase()}: layer ${layer}, ${heads}`;
  });
  return spots.length > 0 ? `Now ${spots.join("; ")}.` : "Nothing moves at this moment.";
}

function slotWords(slot, index) {
  const held = `Slot ${index + 1}: ${tokens(slot.tokens)}`;
  if (slot.prefill.total > 0) return `${held}, reading ${number(slot.prefill.total)}`;
  return slot.busy ? `${held}, writing` : held;
}

/** Bytes per second over the last seconds, of lanes that ever did anything. */
function lanes(time) {
  const moved = Object.fromEntries(Object.entries(cache.lanes).map(([lane, { bytes }]) => [lane, bytes]));
  Object.assign(moved, { written: cache.store?.written_bytes ?? 0, read: cache.store?.read_bytes ?? 0 });
  looks.push({ time, moved });
  looks = looks.filter((look) => time - look.time < 3000);
  const seconds = (time - looks[0].time) / 1000;
  const rows = Object.entries(LANES).flatMap(([lane, name]) => {
    if (moved[lane] === 0) return [];
    // A server that began anew counts from nothing.
    const more = Math.max(0, moved[lane] - looks[0].moved[lane]);
    return [line("dt", name), line("dd", more > 0 ? bytesPerSecond(more / seconds) : "rests")];
  });
  at("moves").replaceChildren(...rows);
}

function line(kind, text) {
  const item = document.createElement(kind);
  item.textContent = text;
  return item;
}

function table() {
  const heads = (places, place) => {
    const at = [...places].flatMap((other, head) => other === place ? [head] : []);
    return at.length === 0 ? "" : at.length === 1 ? `${at[0]}` : `${at[0]} to ${at.at(-1)}`;
  };
  const rows = cache.places.map((places, layer) => {
    const row = document.createElement("tr");
    const head = line("th", layer);
    head.scope = "row";
    row.append(head, ...["d", "h", "c"].map((place) => line("td", heads(places, place))));
    return row;
  });
  at("map-rows").replaceChildren(...rows);
}

function paint() {
  // A server that began anew while something faded.
  if (cache === null) return;
  const canvas = at("map");
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  const width = canvas.parentElement.clientWidth;
  const w = Math.min(36, width / cache.layers);
  const h = Math.max(5, Math.min(18, Math.floor(180 / cache.kv_heads)));
  const scale = devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * scale), Math.round(h * cache.kv_heads * scale)];
  if (canvas.width !== wide || canvas.height !== high) {
    Object.assign(canvas, { width: wide, height: high });
    canvas.style.height = `${h * cache.kv_heads}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, h * cache.kv_heads);
  const filled = context ? Math.min(1, shownSlot().tokens / context) : 0;
  const colours = { d: colour("--place-d"), h: colour("--place-h"), c: colour("--place-c") };
  const ring = colour("--now");
  const time = performance.now();
  for (const [layer, places] of cache.places.entries()) {
    for (const [head, place] of [...places].entries()) {
      // Edges on whole pixels: blurred ones look like other colours.
      const [x, y] = [Math.round(layer * w), head * h];
      const [side, tall] = [Math.max(1, Math.round((layer + 1) * w) - x - 1), h - 1];
      pen.fillStyle = colours[place];
      pen.globalAlpha = 0.3;
      pen.fillRect(x, y, side, tall);
      pen.globalAlpha = 1;
      pen.fillRect(x, y + tall * (1 - filled), side, tall * filled);
      const age = time - (glow.get(layer * cache.kv_heads + head) ?? -Infinity);
      if (age >= GLOW_MS) continue;
      pen.globalAlpha = calm.matches ? 1 : 1 - age / GLOW_MS;
      pen.strokeStyle = ring;
      pen.lineWidth = side > 6 ? 2 : 1;
      pen.strokeRect(x + pen.lineWidth / 2, y + pen.lineWidth / 2, side - pen.lineWidth, tall - pen.lineWidth);
      pen.globalAlpha = 1;
    }
  }
  fade(time);
}

let fading = false;

/** Paints on while something glows. */
function fade(time) {
  for (const [cell, since] of glow) if (time - since >= GLOW_MS) glow.delete(cell);
  if (fading || glow.size === 0) return;
  fading = true;
  // With reduced motion a ring only goes, once.
  const next = calm.matches ? (paint) => setTimeout(paint, GLOW_MS) : requestAnimationFrame;
  next(() => {
    fading = false;
    paint();
  });
}

at("map-details").addEventListener("toggle", () => {
  if (cache !== null && at("map-details").open) table();
});
addEventListener("resize", paint);

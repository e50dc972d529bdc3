// What is seen of questions, answers and the work under way. Text of models and people becomes text, never markup.

import { number, Pace, time, tokens } from "./pace.js";

const at = (id) => document.getElementById(id);
// A screen reader hears of progress this often.
const ANNOUNCED_PERCENT = 10;

/** For screen readers. */
export function announce(words) {
  at("announce").textContent = words;
}

/** An error in words; "" takes the last one away. */
export function notice(words) {
  at("notice").textContent = words;
  at("notice").hidden = words === "";
}

/** A new entry of the list: { say(text), restart(), note(words), busy(bool), remove() }. */
export function entry(turn) {
  const item = document.createElement("li");
  const [question, answer, note] = ["question", "answer", "note faint figures"].map((name) => {
    const part = document.createElement("div");
    part.className = name;
    item.append(part);
    return part;
  });
  question.textContent = turn.question;
  const text = document.createTextNode(turn.answer);
  answer.append(text);
  note.textContent = turn.note;
  at("turns").append(item);
  return {
    say: (piece) => text.appendData(piece),
    restart: () => { text.data = ""; },
    note: (words) => { note.textContent = words; },
    remove: () => item.remove(),
    busy: (busy) => item.setAttribute("aria-busy", String(busy)),
  };
}

export function clear() {
  at("turns").replaceChildren();
}

/** What the panel of the work shows. */
export class Panel {
  constructor() {
    this.begin();
  }

  begin() {
    this.pace = new Pace();
    this.progress = null;
    this.announced = 0;
    this.phase = "";
  }

  /** The stream begins, or begins again: it tells all that was told. */
  restart() {
    this.pace = new Pace();
  }

  show(phase, detail) {
    at("work").hidden = false;
    at("stop").hidden = false;
    at("resume").hidden = true;
    const titles = {
      sending: "Sending the question",
      waiting: "Waiting for a free place",
      reading: "Reading",
      writing: "Writing",
      lost: "The work goes on, the connection does not",
    };
    if (phase !== this.phase) announce(titles[phase]);
    this.phase = phase;
    at("work-title").textContent = titles[phase];
    if (phase === "sending" || phase === "waiting") {
      at("bar").removeAttribute("value");
      at("work-facts").textContent = "";
    }
    if (phase === "lost") {
      at("work-facts").textContent = `${detail.why}; trying again in ${time(detail.wait / 1000)}`;
    }
  }

  /** llama.cpp's progress: tokens of the prompt in all, found in the cache, and done by now. */
  read(progress) {
    this.progress = progress;
    this.pace.add(progress);
    this.show("reading");
    const { total, cache, processed } = progress;
    const percent = Math.floor(100 * processed / total);
    at("bar").max = total;
    at("bar").value = processed;
    const facts = [`${number(processed)} of ${tokens(total)}`];
    const [rate, left] = [this.pace.rate(), this.pace.left(total)];
    if (rate !== null) facts.push(`${number(rate)} tokens/s`);
    if (left !== null && processed < total) facts.push(`about ${time(left)} left`);
    if (cache > 0) facts.push(`${number(cache)} were in the cache`);
    at("work-facts").textContent = facts.join(" · ");
    document.title = processed < total ? `${percent} % · headinfer` : "headinfer";
    if (percent >= this.announced + ANNOUNCED_PERCENT && processed < total) {
      this.announced = percent;
      announce(`${percent} percent read${left === null ? "" : `, about ${time(left)} left`}`);
    }
  }

  write(characters) {
    this.show("writing");
    at("bar").max = 1;
    at("bar").value = 1;
    at("work-facts").textContent = `${number(characters)} characters`;
  }

  /** Stopped or failed: it can be taken up again. */
  rest(words) {
    this.phase = "";
    document.title = "headinfer";
    at("work").hidden = false;
    at("stop").hidden = true;
    at("resume").hidden = false;
    at("work-title").textContent = "Stopped";
    if (!this.progress) at("bar").value = 0;
    at("work-facts").textContent = words;
  }

  end() {
    this.phase = "";
    document.title = "headinfer";
    at("work").hidden = true;
  }
}

/** What a finished answer cost. */
export function cost(usage, seconds, reason) {
  if (!usage) return "";
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const facts = [`${tokens(usage.prompt_tokens)} read`];
  if (cached > 0) facts.push(`${number(cached)} of them from the cache`);
  facts.push(`${number(usage.completion_tokens)} written`);
  if (seconds !== null) facts.push(seconds < 10 ? `${seconds.toFixed(1)} s` : time(seconds));
  if (reason === "length") facts.push("ended at its length limit");
  return facts.join(" · ");
}

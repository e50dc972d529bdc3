// How fast a prefill goes and when it ends, and numbers in words.

/** Told of progress; says tokens per second of late, and seconds to the end. */
export class Pace {
  constructor() {
    // { at: tokens, spent: seconds }; the server's clock.
    this.points = [];
  }

  add({ cache, processed, time_ms }) {
    const last = this.points.at(-1);
    if (this.points.length === 0 && processed > cache) this.points.push({ at: cache, spent: 0 });
    if (last && (processed < last.at || time_ms / 1000 < last.spent)) this.points = [];
    if (last?.at !== processed) this.points.push({ at: processed, spent: time_ms / 1000 });
  }

  /** Over at least a second, when there was one; null before the first chunk. */
  rate() {
    const last = this.points.at(-1);
    const first = this.points.findLast((point) => last.spent - point.spent >= 1) ?? this.points[0];
    return last && last.spent > first.spent ? (last.at - first.at) / (last.spent - first.spent) : null;
  }

  /**
   * A token costs more the more came before it: seconds per token are taken as a line over the position, fitted to
   * what was seen, and summed up to `total`.
   */
  left(total) {
    const last = this.points.at(-1);
    if (this.points.length < 2) return null;
    let [n, sx, sy, sxx, sxy] = [0, 0, 0, 0, 0];
    for (let i = 1; i < this.points.length; i++) {
      const [from, to] = [this.points[i - 1], this.points[i]];
      const [weight, x] = [to.at - from.at, (to.at + from.at) / 2];
      const y = (to.spent - from.spent) / weight;
      n += weight;
      sx += weight * x;
      sy += weight * y;
      sxx += weight * x * x;
      sxy += weight * x * y;
    }
    const spread = n * sxx - sx * sx;
    const slope = spread > 0 ? Math.max(0, (n * sxy - sx * sy) / spread) : 0;
    const base = (sy - slope * sx) / n;
    const rest = base * (total - last.at) + slope * (total * total - last.at * last.at) / 2;
    return Math.max(0, rest);
  }
}

export const number = (value) => Math.round(value).toLocaleString("en");

export function bytes(value) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function bytesPerSecond(value) {
  return value >= 1e8 ? `${(value / 1e9).toFixed(1)} GB/s` : `${(value / 1e6).toFixed(1)} MB/s`;
}

export function time(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
}

/** `12 tokens`, `1 token`. */
export const tokens = (value) => `${number(value)} ${Math.round(value) === 1 ? "token" : "tokens"}`;

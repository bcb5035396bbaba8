// How does a person read a number? With a unit, three digits, and times as "2 min ago".
//
// Sizes are binary, as everywhere in PegaShm (1 GiB = 2^30 bytes); counts are decimal. Pure functions.

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const DECIMAL = ["", "k", "M", "G", "T"];
const NONE = "–";

/** Three digits, no more: 1.23, 12.3, 123. */
function digits(value) {
  const size = Math.abs(value);
  const places = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2;
  return value.toFixed(places);
}

function scaled(value, base, units) {
  let power = 0;
  while (power < units.length - 1 && Math.abs(value) >= base) {
    value /= base;
    power += 1;
  }
  return [digits(value), units[power]];
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const bytesParts = (value) => (known(value) ? scaled(value, 1024, BINARY) : [NONE, ""]);
export const bytes = (value) => bytesParts(value).join(" ").trim();

/** Whole below ten thousand, with separators; scaled above. */
export function countParts(value) {
  if (!known(value)) return [NONE, ""];
  if (Math.abs(value) < 10_000) {
    return [Number.isInteger(value) ? value.toLocaleString("en") : digits(value), ""];
  }
  return scaled(value, 1000, DECIMAL);
}
export const count = (value) => countParts(value).join(" ").trim();
export const exact = (value) => (known(value) ? value.toLocaleString("en") : NONE);

export function rateParts(value) {
  if (!known(value)) return [NONE, ""];
  if (value !== 0 && value < 0.01) return ["< 0.01", "/s"];
  const [number, unit] = value < 10_000 ? [digits(value), ""] : scaled(value, 1000, DECIMAL);
  return [number, `${unit}/s`];
}
export const rate = (value) => rateParts(value).join(" ");

export function percentParts(value) {
  return known(value) ? [(value * 100).toFixed(value >= 0.9995 ? 0 : 1), "%"] : [NONE, ""];
}
export const percent = (value) => percentParts(value).join(" ").trim();

/** A length of time: 0.8 s, 12 s, 3 min, 2 h 5 min, 4 d 3 h. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const whole = Math.max(0, seconds);
  if (whole < 1) return `${digits(Number(whole.toFixed(1)))} s`;
  if (whole < 60) return `${Math.floor(whole)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86_400) return two(whole, 3600, "h", 60, "min");
  return two(whole, 86_400, "d", 3600, "h");
}

function two(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

export const ago = (then, now) =>
  known(then) && then > 0 ? (now - then < 1 ? "now" : `${duration(now - then)} ago`) : NONE;

/** Date and time to the second, in the reader's zone. */
export function moment(seconds) {
  if (!known(seconds) || seconds <= 0) return NONE;
  return new Date(seconds * 1000).toLocaleString("sv-SE", { timeZoneName: "short" });
}

export const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString("sv-SE", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export { NONE };

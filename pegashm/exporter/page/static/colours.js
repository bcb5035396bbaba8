// Which colour is it? The style sheet's variables, for what is drawn on a canvas.
//
// Read once a theme; "themechange" (theme.js) forgets them. Whoever draws asks again then.

const NAMES = [
  "text", "quiet", "faint", "line", "grid", "panel", "cell", "cell-dim", "focus", "memory", "ssd", "hosts", "missed",
  "space-0", "space-1", "space-2", "space-3", "space-4", "space-5", "space-rest",
];
const SPACES = 6;
let known = {};

document.addEventListener("themechange", () => { known = {}; });

export function colour(name) {
  if (!known.text) {
    const style = getComputedStyle(document.documentElement);
    known = Object.fromEntries(NAMES.map((each) => [each, style.getPropertyValue(`--${each}`).trim()]));
  }
  return known[name];
}

/** The same, so much of it: 0 nothing, 1 all. */
export function tint(name, share) {
  const hex = colour(name).slice(1);
  const [red, green, blue] = [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
  return `rgb(${red} ${green} ${blue} / ${share})`;
}

const given = new Map();

/** A namespace's colour: the largest get one of their own when first seen, and keep it. */
export function giveColours(namespaces) {
  const largest = [...namespaces].sort((a, b) => b.bytes - a.bytes || a.id - b.id);
  const alive = new Set(namespaces.map(({ id }) => id));
  for (const id of given.keys()) if (!alive.has(id)) given.delete(id);
  for (const { id } of largest) {
    if (given.has(id)) continue;
    const taken = new Set(given.values());
    const free = [...Array(SPACES).keys()].map((index) => `space-${index}`).find((name) => !taken.has(name));
    if (!free) break;
    given.set(id, free);
  }
}

export const spaceColour = (id) => given.get(id) ?? "space-rest";

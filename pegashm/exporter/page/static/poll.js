// Is what the page shows still true? Asks the exporter every few seconds and says when it does not answer.
//
// One request at a time, each with a deadline; a hidden tab asks nothing and catches up when it is looked at. What the
// page shows stays when the exporter is gone, marked as old: an operator wants the last figures most of all then.

const DEADLINE_MS = 4000;
const AGAIN_MS = 2000;

/** JSON of a path beside the page. Rejects on anything else than a 200 within the deadline. */
export async function ask(path) {
  const control = new AbortController();
  const timer = setTimeout(() => control.abort(), DEADLINE_MS);
  try {
    const answer = await fetch(path, { signal: control.signal, cache: "no-store" });
    if (!answer.ok) throw new Error(`${path}: HTTP ${answer.status}`);
    return await answer.json();
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Calls `once` (async) again and again: `every()` ms after it was done, sooner after a failure.
 * `lost(error)` after a failure, `found()` after the next success. Returns a function that asks at once.
 */
export function keepAsking(once, { every, lost, found }) {
  let timer = 0;
  let failing = false;
  let running = false;

  async function turn() {
    clearTimeout(timer);
    if (running || document.hidden) return;
    running = true;
    let again = AGAIN_MS;
    try {
      await once();
      again = every();
      if (failing) found();
      failing = false;
    } catch (error) {
      failing = true;
      lost(error);
    }
    running = false;
    timer = setTimeout(turn, again);
  }

  document.addEventListener("visibilitychange", turn);
  turn();
  return turn;
}

// What happened before now? The exporter's ring of samples, of which the page keeps the span it shows.
//
// Asks for what is new since the last answer and drops what has left the span. Another exporter (`incarnation`) or
// another span begins anew.

import { ask } from "./poll.js";
import { duration } from "./units.js";

export function keepHistory() {
  let span = 900;
  let kept = null;

  async function refresh() {
    const since = kept ? `&after=${kept.newest}&of=${encodeURIComponent(kept.incarnation)}` : "";
    const asked = span;
    const answer = await ask(`api/history?span=${asked}${since}`);
    if (asked !== span) return refresh(); // another span was chosen meanwhile
    const goesOn = kept && kept.incarnation === answer.incarnation && answer.after === kept.newest;
    const columns = goesOn ? joined(kept.columns, answer.columns) : answer.columns;
    const first = columns.at.findIndex((at) => at > answer.at - span - answer.point_seconds);
    kept = {
      incarnation: answer.incarnation,
      newest: answer.newest,
      pointSeconds: answer.point_seconds,
      columns: first > 0 ? mapped(columns, (column) => column.slice(first)) : columns,
    };
    return shown();
  }

  function shown() {
    const wait = duration((kept?.pointSeconds ?? 5) * 2);
    return { ...kept.columns, waiting: `Collecting: the plot begins after ${wait}` };
  }

  return {
    refresh,
    choose(seconds) {
      span = seconds;
      kept = null;
    },
  };
}

const mapped = (columns, change) =>
  Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, change(column, name)]));
const joined = (old, fresh) => mapped(old, (column, name) => column.concat(fresh[name]));

// How did it go so far? The plots: uPlot with one look, a legend that follows the cursor, and the same as a table.
//
// A plot takes columns of the exporter's history (history.js); null is a gap: no reading then, or nothing asked for.
// Stacked series are drawn as areas between the sums of those below.

import { colour, tint } from "./colours.js";
import { byId, el, say } from "./dom.js";
import { clock } from "./units.js";

const { uPlot } = globalThis;
const FONT = '11px Inter, ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif';
const SYNC = "pegashm";
// Seconds between two times on the axis, where uPlot's own list jumps from one minute to five.
const STEPS = [5, 10, 15, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200];

/**
 * `series`: [{key, label, colour, dashed?, area?}], bottom of the stack first. `say`: how a value reads. `top`: a fixed
 * upper end of the scale. Returns {show(history)}.
 */
export function plot(name, { series, stacked = false, words, top, axisSize = 46 }) {
  const place = byId(`${name}-plot`);
  const values = legend(`${name}-legend`, series);
  const folded = byId(`${name}-table`).parentElement;
  let shown = null;
  let chart = null;

  place.setAttribute("role", "img");
  folded.addEventListener("toggle", () => shown && fillTable(name, series, shown, words));
  document.addEventListener("themechange", () => chart?.redraw(false));
  new ResizeObserver(() => chart?.setSize(size(place))).observe(place);

  function follow(index) {
    if (!shown) return;
    const at = index ?? shown.at.length - 1;
    series.forEach(({ key }, number) => say(values[number], words(shown[key][at] ?? null)));
  }

  function show(history) {
    shown = history;
    const points = history.at.length;
    waiting(place, points < 2 ? history.waiting : null);
    if (points >= 2) {
      const data = columns(history, series, stacked);
      if (chart) chart.setData(data);
      else chart = new uPlot(options(series, stacked, top, words, axisSize, follow, size(place)), data, place);
    } else {
      chart?.destroy();
      chart = null;
    }
    follow(chart?.cursor.idx ?? null);
    const last = points - 1;
    const newest = series.map(({ key, label }) => `${label} ${words(history[key][last] ?? null)}`);
    place.setAttribute("aria-label", points ? `${newest.join(", ")} at ${clock(history.at[last])}` : "No samples yet");
    if (folded.open) fillTable(name, series, history, words);
  }

  return { show };
}

const size = (place) => ({ width: place.clientWidth, height: place.clientHeight });

function legend(id, series) {
  const values = series.map(() => el("b", {}));
  byId(id).replaceChildren(
    ...series.map((each, index) => {
      const kind = each.dashed ? "swatch swatch-line swatch-dash" : each.line ? "swatch swatch-line" : "swatch";
      return el("span", {}, el("i", { class: kind, "data-colour": each.colour }), each.label, " ", values[index]);
    }),
  );
  return values;
}

function columns(history, series, stacked) {
  if (!stacked) return [history.at, ...series.map(({ key }) => history[key])];
  const sums = [];
  series.forEach(({ key }, index) => {
    const below = sums[index - 1];
    sums.push(history[key].map((value, at) => (value === null ? null : value + (below?.[at] ?? 0))));
  });
  return [history.at, ...sums];
}

function options(series, stacked, top, words, axisSize, follow, { width, height }) {
  const axis = { font: FONT, stroke: () => colour("faint"), ticks: { show: false }, grid: { stroke: () => colour("grid"), width: 1 } };
  return {
    width,
    height,
    padding: [8, 6, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false }, sync: { key: SYNC, setSeries: false } },
    scales: { x: { time: true }, y: { range: (_u, _low, high) => [0, top ?? nice(high)] } },
    bands: stacked ? series.slice(1).map((_each, index) => ({ series: [index + 2, index + 1] })) : [],
    axes: [
      { ...axis, size: 26, space: 72, incrs: STEPS, grid: { show: false }, values: times },
      { ...axis, size: axisSize, space: 34, values: (_u, splits) => splits.map((value) => words(value)) },
    ],
    series: [
      {},
      ...series.map(({ label, colour: name, dashed, area }) => ({
        label,
        stroke: () => colour(name),
        width: dashed ? 1.25 : 1.5,
        dash: dashed ? [4, 4] : undefined,
        fill: stacked ? () => tint(name, 0.5) : area ? () => tint(name, 0.12) : undefined,
        points: { show: false },
      })),
    ],
    hooks: { setCursor: [(u) => follow(u.cursor.idx)] },
  };
}

/** A round end of the scale above the highest value, so that the line does not touch the edge. */
function nice(high) {
  if (!high || high <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(high * 1.08));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((end) => end >= high * 1.08);
}

function times(_u, splits, _axis, _space, step) {
  return splits.map((at) => (step < 60 ? clock(at) : clock(at).slice(0, 5)));
}

function waiting(place, words) {
  let note = place.querySelector(".wait");
  if (words === null) {
    note?.remove();
    return;
  }
  if (!note) {
    note = el("p", { class: "wait" });
    place.append(note);
  }
  say(note, words);
}

function fillTable(name, series, history, words) {
  const rows = history.at.map((at, index) =>
    el("tr", {}, el("th", { scope: "row" }, clock(at)), ...series.map(({ key }) => el("td", { class: "numeric" }, words(history[key][index])))),
  );
  const head = el("tr", {}, el("th", { scope: "col" }, "Time"), ...series.map(({ label }) => el("th", { scope: "col", class: "numeric" }, label)));
  byId(`${name}-table`).replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.reverse())));
}

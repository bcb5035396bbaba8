// Which namespace holds which segment, and how full are they? One cell a segment, filled from below.
//
// Large pools put several neighbours into one cell (the exporter does, and says how many). Read with the pointer, with
// the arrow keys, or as a table. A cell is [state, stride_bytes, capacity_bytes, claimed_bytes, evicting_bytes,
// [[namespace_index, ready_bytes], ...]].

import { colour, spaceColour, tint } from "./colours.js";
import { byId, el, say, show, table } from "./dom.js";
import { bytes, exact } from "./units.js";

const GAP = 2;
const HEIGHT = 272;
const LARGEST = 64;
const SMALLEST = 7;
const STATES = { unassigned: "empty", assigned: "in use", absent: "not populated yet" };

let state = null;
let grid = null;
let current = -1;

export function showMap(fresh) {
  state = fresh;
  const map = state.map;
  const present = map !== null && map.cells.length > 0;
  show("map", present);
  show("map-empty", !present);
  show("map-legend", present);
  show("map-readout", present);
  if (!present) {
    say("map-empty", "No arena to show.");
    say("map-hint", "");
    return;
  }
  if (current >= map.cells.length) current = -1;
  const per = map.segments_per_cell;
  say("map-hint", `${exact(map.segment_count)} segments of ${bytes(map.segment_bytes)}${per > 1 ? `, ${per} to a cell` : ""}`);
  legend();
  draw();
  readOut();
  table("map-table", COLUMNS, map.by_stride, (row) => `${row.state} ${row.stride_bytes}`);
}

const COLUMNS = [
  { name: "Segments", text: (row) => exact(row.segments), numeric: true },
  { name: "State", text: (row) => STATES[row.state] ?? row.state },
  { name: "Block size", text: (row) => (row.stride_bytes ? bytes(row.stride_bytes) : "–"), numeric: true },
  { name: "Blocks", text: (row) => exact(row.blocks), numeric: true },
  { name: "Ready", text: (row) => exact(row.ready), numeric: true },
  { name: "Claimed", text: (row) => exact(row.claimed), numeric: true },
  { name: "Evicting", text: (row) => exact(row.evicting), numeric: true },
  { name: "Free", text: (row) => exact(row.free), numeric: true },
];

function legend() {
  const named = [...state.namespaces].sort((a, b) => b.bytes - a.bytes || a.id - b.id).filter(({ id }) => spaceColour(id) !== "space-rest");
  const rest = state.namespaces.length - named.length;
  const entries = named.map(({ id, label }) => [spaceColour(id), label || `namespace ${id}`]);
  if (rest) entries.push(["space-rest", `${rest} smaller ${rest === 1 ? "one" : "ones"}`]);
  const mark = JSON.stringify(entries);
  const place = byId("map-legend");
  if (place.dataset.mark === mark) return;
  place.dataset.mark = mark;
  place.replaceChildren(
    ...entries.map(([name, words]) => el("span", {}, el("i", { class: "swatch", "data-colour": name }), words)),
    el("span", {}, el("i", { class: "swatch swatch-busy" }), "being written or evicted"),
    el("span", {}, el("i", { class: "swatch", "data-colour": "cell" }), "free"),
    el("span", {}, el("i", { class: "swatch", "data-colour": "cell-dim" }), "empty"),
  );
}

/** The largest cells with which all fit into the height; small pools do not become a chessboard. */
function layout(width, count) {
  for (let side = LARGEST; side > SMALLEST; side -= 1) {
    const across = Math.floor((width + GAP) / (side + GAP));
    const down = Math.ceil(count / across);
    if (across > 0 && down * (side + GAP) - GAP <= HEIGHT) return { side, across, down };
  }
  const across = Math.max(1, Math.floor((width + GAP) / (SMALLEST + GAP)));
  return { side: SMALLEST, across, down: Math.ceil(count / across) };
}

function draw() {
  const canvas = byId("map-canvas");
  const width = byId("map").clientWidth;
  if (!state?.map || width === 0) return;
  const { cells } = state.map;
  grid = layout(width, cells.length);
  const height = grid.down * (grid.side + GAP) - GAP;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  cells.forEach((cell, index) => drawCell(pen, cell, ...corner(index), grid.side));
  if (current >= 0) {
    const [x, y] = corner(current);
    pen.strokeStyle = colour("text");
    pen.lineWidth = 1.5;
    pen.strokeRect(x - 0.25, y - 0.25, grid.side + 0.5, grid.side + 0.5);
  }
}

const corner = (index) => [(index % grid.across) * (grid.side + GAP), Math.floor(index / grid.across) * (grid.side + GAP)];

function drawCell(pen, [kind, , capacity, claimed, evicting, ready], x, y, side) {
  pen.fillStyle = colour(kind === "assigned" ? "cell" : "cell-dim");
  pen.fillRect(x, y, side, side);
  if (kind === "absent") {
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1;
    pen.setLineDash([2, 2]);
    pen.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
    pen.setLineDash([]);
    return;
  }
  if (!capacity) return;
  let bottom = y + side;
  const rise = (share) => {
    const tall = Math.min(share * side, bottom - y);
    bottom -= tall;
    return tall;
  };
  for (const [space, held] of ready) {
    const tall = rise(held / capacity);
    pen.fillStyle = tint(spaceColour(state.namespaces[space]?.id), 0.86);
    pen.fillRect(x, bottom, side, tall);
  }
  const busy = rise((claimed + evicting) / capacity);
  if (busy > 0) hatch(pen, x, bottom, side, Math.max(busy, 2));
}

function hatch(pen, x, y, wide, tall) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, wide, tall);
  pen.clip();
  pen.strokeStyle = colour("quiet");
  pen.lineWidth = 1;
  pen.beginPath();
  for (let at = -tall; at < wide; at += 3) {
    pen.moveTo(x + at, y + tall);
    pen.lineTo(x + at + tall, y);
  }
  pen.stroke();
  pen.restore();
}

function readOut() {
  const { cells, segments_per_cell: per } = state.map;
  if (current < 0) {
    say("map-readout", state.map.summary);
    return;
  }
  const [kind, stride, capacity, claimed, evicting, ready] = cells[current];
  const first = current * per;
  const last = Math.min(first + per, state.map.segment_count) - 1;
  const which = last > first ? `Segments ${first} to ${last}` : `Segment ${first}`;
  if (!capacity) {
    say("map-readout", `${which}: ${STATES[kind] ?? kind}`);
    return;
  }
  const amount = (held) => (stride ? `${exact(Math.round(held / stride))}` : bytes(held));
  const total = ready.reduce((sum, [, held]) => sum + held, 0);
  const parts = ready.map(([space, held]) => `${state.namespaces[space]?.label || "a namespace that is gone"} ${amount(held)}`);
  if (claimed) parts.push(`being written ${amount(claimed)}`);
  if (evicting) parts.push(`being evicted ${amount(evicting)}`);
  parts.push(`free ${amount(Math.max(0, capacity - total - claimed - evicting))}`);
  const blocks = stride ? `${exact(Math.round(capacity / stride))} blocks of ${bytes(stride)}` : "blocks of several sizes";
  say("map-readout", `${which}, ${blocks}: ${parts.join(", ")}`);
}

function choose(index) {
  if (!state?.map || index === current) return;
  current = index >= 0 && index < state.map.cells.length ? index : -1;
  draw();
  readOut();
}

function under(event) {
  const box = byId("map-canvas").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / (grid.side + GAP));
  const row = Math.floor((event.clientY - box.top) / (grid.side + GAP));
  return column >= 0 && column < grid.across ? row * grid.across + column : -1;
}

const STEPS = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -grid.across, ArrowDown: () => grid.across };

export function startMap() {
  const canvas = byId("map-canvas");
  canvas.addEventListener("pointermove", (event) => choose(under(event)));
  canvas.addEventListener("pointerdown", (event) => choose(under(event)));
  canvas.addEventListener("pointerleave", () => choose(-1));
  canvas.addEventListener("blur", () => choose(-1));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(-1);
    const step = STEPS[event.key];
    if (!step || !state?.map) return;
    event.preventDefault();
    const next = current < 0 ? 0 : current + step();
    if (next >= 0 && next < state.map.cells.length) choose(next);
  });
  document.addEventListener("themechange", draw);
  new ResizeObserver(draw).observe(byId("map"));
}

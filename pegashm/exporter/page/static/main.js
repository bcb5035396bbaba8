// What does the page do? Asks for the state and the history every few seconds, and hands both to the panels.
//
// A panel that fails takes none of the others with it. Another version of the exporter behind the same address loads
// the page anew, since its files changed with it.

import { giveColours } from "./colours.js";
import { byId, el, markScrollable, say, show } from "./dom.js";
import { keepHistory } from "./history.js";
import { showMap, startMap } from "./map.js";
import { showArena, showClients, showEvents, showHead, showJournal, showMisses, showNamespaces, showPeers, showReuse, showTiers, showTiles } from "./panels.js";
import { plot } from "./plots.js";
import { ask, keepAsking } from "./poll.js";
import { clock, duration, percent, rate } from "./units.js";

const PANELS = [showHead, showTiles, showTiers, showArena, showReuse, showMap, showNamespaces, showClients, showMisses, showPeers, showEvents, showJournal];

const history = keepHistory();
const plots = [
  plot("rate", {
    series: [
      { key: "ceiling", label: "Ceiling, 15 min", colour: "quiet", dashed: true },
      { key: "hit_rate", label: "Hit rate, 15 min", colour: "memory", area: true, line: true },
    ],
    words: (value) => (value === null ? "–" : percent(value).replace(".0 ", " ")),
    top: 1,
  }),
  plot("answers", {
    series: [
      { key: "memory", label: "Memory", colour: "memory" },
      { key: "ssd", label: "SSD", colour: "ssd" },
      { key: "hosts", label: "Other hosts", colour: "hosts" },
      { key: "missed", label: "Missed", colour: "missed" },
    ],
    stacked: true,
    words: rate,
    axisSize: 58,
  }),
  plot("flow", {
    series: [
      { key: "stored", label: "Stored", colour: "memory", area: true, line: true },
      { key: "evicted", label: "Evicted", colour: "text", line: true },
      { key: "spilled", label: "Spilled to SSD", colour: "ssd", line: true },
    ],
    words: rate,
    axisSize: 58,
  }),
];

let version = null;
let readAt = 0; // by this browser's clock
let reading = null;

async function refresh() {
  const state = await ask("api/state");
  if (version !== null && version !== state.exporter.version) location.reload();
  version = state.exporter.version;
  readAt = Date.now();
  reading = state;
  giveColours(state.namespaces);
  for (const panel of PANELS) attempt(() => panel(state));
  const past = await history.refresh();
  for (const each of plots) attempt(() => each.show(past));
  markScrollable();
  fresh();
}

function attempt(step) {
  try {
    step();
  } catch (error) {
    console.error(error);
  }
}

function fresh() {
  if (readAt) say("freshness", Date.now() - readAt < 1500 ? "updated now" : `updated ${duration((Date.now() - readAt) / 1000)} ago`);
}

function lost(error) {
  document.body.dataset.lost = "";
  const pill = byId("health");
  pill.dataset.state = "wait";
  say(pill, "Unknown");
  show("lost", true);
  const until = reading ? `What is below was read at ${clock(reading.at)}.` : "Nothing has been read yet.";
  byId("lost").replaceChildren(`The exporter does not answer (${error.name === "AbortError" ? "no answer in time" : error.message}). ${until} Engines do not need it. To start it: `, el("code", {}, "pegashm exporter"), ".");
}

function found() {
  delete document.body.dataset.lost;
  show("lost", false);
}

startMap();
addEventListener("resize", markScrollable);
const askNow = keepAsking(refresh, { every: () => reading.exporter.sample_seconds * 1000, lost, found });
setInterval(fresh, 1000);
for (const button of document.querySelectorAll("[data-span]")) {
  button.addEventListener("click", () => {
    for (const each of document.querySelectorAll("[data-span]")) each.setAttribute("aria-pressed", String(each === button));
    history.choose(Number(button.dataset.span));
    askNow();
  });
}

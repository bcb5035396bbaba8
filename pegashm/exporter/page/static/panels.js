// What stands where? One function a panel: the state of api/state in, text in the page's places out.
//
// Each takes the whole state, says what there is, and has a sentence for when there is nothing. `now` is the exporter's
// clock at the reading, so that a browser with a wrong clock shows right ages.

import { spaceColour } from "./colours.js";
import { byId, el, figure, pairs, prose, say, sayProse, show, table } from "./dom.js";
import { ago, bytes, bytesParts, count, countParts, duration, exact, moment, percent, percentParts, rate, rateParts } from "./units.js";

const HEALTH = { ok: "Healthy", degraded: "Degraded", down: "Down" };

export function showHead(state) {
  const { arena, exporter, health } = state;
  say("arena-name", state.name);
  const trouble = health.status === "ok" ? "" : `${HEALTH[health.status] ?? health.status}: `;
  document.title = `${trouble}${state.name} · PegaShm`;
  const pill = byId("health");
  say(pill, HEALTH[health.status] ?? health.status);
  pill.dataset.state = health.status;
  say("version", `version ${exporter.version}${arena ? `, format ${arena.format}` : ""}`);
  say("uptime", uptime(state));
  showReasons(health);
  const history = `${duration(exporter.history_seconds)} of history, a sample every ${exporter.sample_seconds} s, in ${bytes(exporter.history_bytes)} of the exporter's memory.`;
  const survey = state.survey ? ` The last look at all blocks took ${duration(state.survey.took_seconds)}, ${ago(state.at - state.survey.age_seconds, state.at)}.` : "";
  say("foot-cost", history + survey);
}

function uptime({ arena, at }) {
  if (!arena) return "";
  const { alive, started_at: since } = arena.supervisor;
  return alive ? `supervisor up ${duration(at - since)}` : "no supervisor";
}

function showReasons({ status, reasons }) {
  const list = byId("reasons");
  list.hidden = reasons.length === 0;
  const mark = JSON.stringify([status, reasons]);
  if (list.dataset.mark === mark) return;
  list.dataset.mark = mark;
  list.replaceChildren(
    ...reasons.map(({ name, text, advice }) =>
      el("li", { "data-level": status === "down" ? "bad" : "warn", "data-reason": name },
        el("span", { class: "what" }, text), el("span", { class: "fix" }, advice)),
    ),
  );
}

// -- key figures -------------------------------------------------------------------------------

export function showTiles(state) {
  const { memory, clients, last_minute: minute } = state;
  const window = state.reuse[0];
  const per = (amount) => (minute.seconds > 0 ? amount / minute.seconds : null);
  const hits = minute.memory + minute.ssd + minute.hosts;
  const asked = hits + minute.missed;
  const rateNow = window ? window.hit_rate : asked > 0 ? hits / asked : null;
  figure("tile-rate", percentParts(rateNow));
  say("tile-rate-note", rateNote(window));
  meter(rateNow, window?.ceiling ?? null);
  figure("tile-memory", bytesParts(memory?.ready_bytes));
  say("tile-memory-note", memory ? `of ${bytes(memory.payload_bytes)}, ${percent(memory.ready_bytes / memory.payload_bytes)}` : "");
  figure("tile-asked", rateParts(per(asked)));
  say("tile-asked-note", asked > 0 ? `${percent(hits / asked)} from the cache` : minute.seconds > 0 ? "nothing in the last minute" : "");
  figure("tile-stored", rateParts(per(minute.stored)));
  say("tile-stored-note", minute.seconds > 0 ? `evicted ${rate(per(minute.evicted))}` : "");
  figure("tile-pinned", memory ? pluralParts(memory.pinned, "block") : ["–", ""]);
  say("tile-pinned-note", memory?.pinned ? `${bytes(memory.pinned_bytes)}, oldest ${duration(memory.oldest_pin_seconds)}` : "");
  const alive = clients.filter((client) => client.alive).length;
  figure("tile-clients", state.arena ? [exact(alive), "attached"] : ["–", ""]);
  const dead = clients.length - alive;
  say("tile-clients-note", dead ? `${dead} dead, not reaped yet` : "");
}

function rateNote(window) {
  if (!window) return "no reuse ceiling in this arena";
  if (window.ceiling === null) return "nothing asked for";
  return `ceiling ${percent(window.ceiling)}`;
}

const pluralParts = (number, noun) => {
  const [value, unit] = countParts(number);
  return [value, `${unit} ${noun}${number === 1 ? "" : "s"}`.trim()];
};

function meter(value, ceiling) {
  const node = byId("tile-rate-meter");
  node.firstElementChild.style.width = `${(value ?? 0) * 100}%`;
  node.lastElementChild.hidden = ceiling === null;
  node.lastElementChild.style.left = `${(ceiling ?? 0) * 100}%`;
  node.setAttribute("aria-label", `Hit rate ${percent(value)}${ceiling === null ? "" : `, ceiling ${percent(ceiling)}`}`);
}

// -- tiers -------------------------------------------------------------------------------------

export function showTiers(state) {
  showMemory(state);
  showSsd(state);
  showHosts(state);
}

/** `parts`: [share, part] of the whole width. */
function gauge(id, parts, label) {
  const node = byId(id);
  while (node.children.length < parts.length) node.append(el("i"));
  while (node.children.length > parts.length) node.lastChild.remove();
  parts.forEach(([share, part], index) => {
    node.children[index].dataset.part = part;
    node.children[index].style.width = `${Math.min(1, Math.max(0, share)) * 100}%`;
    node.children[index].hidden = share <= 0;
  });
  node.setAttribute("aria-label", label);
}

/** The head of one tier, which is on, off or in trouble. */
function tier(name, on, words, empty) {
  const place = document.querySelector(`[data-tier="${name}"]`);
  place.toggleAttribute("data-off", !on);
  say(`${name}-figure`, words);
  show(`${name}-gauge`, on);
  show(`${name}-pairs`, on);
  if (byId(`${name}-empty`)) {
    show(`${name}-empty`, Boolean(empty));
    sayProse(`${name}-empty`, empty ?? "");
  }
}

const served = ({ last_minute: minute }, name) => (minute.seconds > 0 ? rate(minute[name] / minute.seconds) : "–");

function showMemory(state) {
  const { memory } = state;
  if (!memory) {
    tier("memory", false, "no arena");
    return;
  }
  const whole = memory.payload_bytes || 1;
  const busy = memory.claimed_bytes + memory.evicting_bytes;
  tier("memory", true, `${bytes(memory.ready_bytes)} of ${bytes(memory.payload_bytes)}`);
  gauge("memory-gauge", [[memory.ready_bytes / whole, "ready"], [busy / whole, "busy"]], `${percent(memory.ready_bytes / whole)} of the memory holds ready blocks`);
  pairs("memory-pairs", [
    ["Hits", served(state, "memory")],
    ["Ready", count(memory.ready)],
    ["Being written", count(memory.claimed)],
    ["Pinned", count(memory.pinned)],
    ["Oldest", memory.ready ? duration(memory.oldest_ready_seconds) : "–"],
    ["Damaged", memory.damaged ? exact(memory.damaged) : null],
  ]);
}

function showSsd(state) {
  const { ssd } = state;
  if (!ssd) {
    tier("ssd", false, "off", "Evicted blocks are gone. `pegashm serve --spill PATH --spill-size 2T` keeps them.");
    return;
  }
  if (!ssd.worker_alive) {
    tier("ssd", false, "no worker", "The transport worker does not live: blocks on SSD are misses until the supervisor has restarted it.");
    return;
  }
  tier("ssd", true, `${exact(ssd.listed)} of ${exact(ssd.room)} blocks`);
  gauge("ssd-gauge", [[ssd.listed / (ssd.room || 1), "ready"]], `${percent(ssd.listed / (ssd.room || 1))} of the room on SSD is listed`);
  pairs("ssd-pairs", [
    ["Hits", served(state, "ssd")],
    ["Files in use", `${ssd.files_usable} of ${Math.max(ssd.files, ssd.files_usable)}`],
    ["Backlog", `${count(ssd.backlog_blocks)} (${bytes(ssd.backlog_bytes)})`],
    ["Written in 24 h", ssd.budget_bytes ? `${bytes(ssd.budget_used_bytes)} of ${bytes(ssd.budget_bytes)}` : bytes(ssd.budget_used_bytes)],
    ["Amplification", ssd.amplification === null ? "–" : ssd.amplification.toFixed(2)],
    ["Read back", bytes(ssd.read_bytes)],
  ]);
}

function showHosts(state) {
  const { hosts } = state;
  if (!hosts) {
    tier("hosts", false, "off", "This host asks no other. `pegashm serve --listen HOST:PORT --peers …` shares with them.");
    return;
  }
  if (!hosts.worker_alive) {
    tier("hosts", false, "no worker", "The transport worker does not live: blocks of other hosts are misses until the supervisor has restarted it.");
    return;
  }
  const usable = hosts.peers.filter((peer) => peer.state === "usable").length;
  const hints = hosts.peers.reduce((sum, peer) => sum + peer.hints, 0);
  tier("hosts", true, `${usable} of ${hosts.peers.length} peers usable`, hosts.peers.length ? null : "No other host has been met yet.");
  gauge("hosts-gauge", [[hints / (hosts.room || 1), "ready"]], `${percent(hints / (hosts.room || 1))} of the room for hints is taken`);
  pairs("hosts-pairs", [
    ["Hits", served(state, "hosts")],
    ["Blocks there", count(hints)],
    ["Fetched", bytes(hosts.fetched_bytes)],
    ["Served to them", bytes(hosts.served_bytes)],
  ]);
}

// -- tables ------------------------------------------------------------------------------------

export function showArena({ arena, at }) {
  if (!arena) {
    pairs("arena-pairs", [["Region", "none"]]);
    return;
  }
  const { supervisor, worker } = arena;
  pairs("arena-pairs", [
    ["Region", arena.region_id],
    ["Created", `${moment(arena.created_at)} (${ago(arena.created_at, at)})`],
    ["Supervisor", supervisor.alive ? `pid ${supervisor.pid}, up ${duration(at - supervisor.started_at)}` : "none lives"],
    ["Transport worker", worker.alive ? `pid ${worker.pid}` : worker.wanted ? "none lives" : "not needed"],
    ["Payload", `${bytes(arena.payload_bytes)} on pages of ${bytes(arena.page_bytes)}`],
    ["Control region", bytes(arena.control_bytes)],
    ["Segments ready", `${exact(arena.segments_ready)} of ${exact(arena.segment_count)}`],
    ["Eviction", arena.eviction],
    ["Drained", arena.draining_since ? `since ${duration(at - arena.draining_since)}: nothing is stored` : null],
    ...arena.arenas.map(({ path, numa_node: node }) => [node >= 0 ? `Memory, node ${node}` : "Memory", path]),
  ]);
}

export function showReuse({ reuse, arena }) {
  const columns = [
    { name: "Last", text: (row) => (row.known_seconds < row.seconds ? `${row.window} (${duration(row.known_seconds)} known)` : row.window) },
    { name: "Asked for", text: (row) => count(row.asked), numeric: true },
    { name: "Hit rate", text: (row) => percent(row.hit_rate), numeric: true },
    { name: "Ceiling", text: (row) => percent(row.ceiling), numeric: true },
  ];
  table("reuse-table", columns, reuse, (row) => row.window, {
    emptyId: "reuse-empty",
    empty: arena ? "This arena counts no reuse." : "No arena.",
  });
}

const swatch = (name) => el("i", { class: "swatch", "data-colour": name });
const named = (name, words) => el("span", { class: "named" }, swatch(name), el("span", {}, words));

function shareBar(share, name) {
  const fill = el("i", {});
  fill.style.width = `${Math.min(1, share) * 100}%`;
  return el("span", { class: "bar-cell", "data-colour": name, "aria-hidden": "true" }, fill);
}

export function showNamespaces({ namespaces, memory, arena }) {
  const whole = memory?.payload_bytes || 1;
  const label = (row) => row.label || `namespace ${row.id}`;
  const columns = [
    { name: "Namespace", text: label, node: (row) => named(spaceColour(row.id), label(row)), title: (row) => `id ${row.id}, digest ${row.digest} ${spaceColour(row.id)}` },
    { name: "Blocks", text: (row) => exact(row.ready), numeric: true },
    { name: "Memory", text: (row) => bytes(row.bytes), node: (row) => [bytes(row.bytes), shareBar(row.bytes / (row.maximum_bytes || whole), spaceColour(row.id))], title: (row) => percent(row.bytes / (row.maximum_bytes || whole)), numeric: true },
    { name: "Maximum", text: (row) => (row.maximum_bytes ? bytes(row.maximum_bytes) : "none"), numeric: true },
    { name: "Reserved", text: (row) => (row.reserved_bytes ? bytes(row.reserved_bytes) : "none"), numeric: true },
    { name: "Clients", text: (row) => exact(row.clients), numeric: true },
  ];
  const sorted = [...namespaces].sort((a, b) => b.bytes - a.bytes || a.id - b.id);
  table("namespaces-table", columns, sorted, (row) => row.id, {
    emptyId: "namespaces-empty",
    empty: arena ? "No engine has registered one yet." : "No arena.",
  });
}

function clientState(row) {
  if (row.alive) return ["ok", "alive"];
  return row.copiers_alive ? ["warn", "dead, its workers live"] : ["bad", "dead, not reaped yet"];
}

export function showClients({ clients, namespaces, arena, at }) {
  const labels = new Map(namespaces.map(({ id, label }) => [id, label]));
  const columns = [
    { name: "Client", text: (row) => row.label || `slot ${row.slot}`, title: (row) => `slot ${row.slot}, ${row.mode}, ${labels.get(row.namespace_id) || "no namespace"}` },
    { name: "State", text: (row) => clientState(row)[1], node: (row) => el("span", { class: "tag", "data-state": clientState(row)[0] }, clientState(row)[1]) },
    { name: "Process", text: (row) => String(row.pid), numeric: true },
    { name: "Pins", text: (row) => exact(row.pinned), title: (row) => bytes(row.pinned_bytes), numeric: true },
    { name: "Oldest pin", text: (row) => (row.pinned ? duration(row.oldest_pin_seconds) : "–"), numeric: true },
    { name: "Claims", text: (row) => exact(row.claims), title: (row) => bytes(row.claimed_bytes), numeric: true },
    { name: "Attached", text: (row) => ago(row.attached_at, at), title: (row) => moment(row.attached_at), numeric: true },
  ];
  table("clients-table", columns, clients, (row) => `${row.slot} ${row.incarnation}`, {
    emptyId: "clients-empty",
    empty: arena ? "Nobody is attached. Blocks stay for the next engine." : "No arena.",
    rowState: (row) => (row.alive ? null : "dead"),
  });
}

export function showMisses({ misses, arena }) {
  const total = misses.rows.reduce((sum, row) => sum + row.blocks, 0);
  const columns = [
    { name: "Reason", text: (row) => row.reason.replaceAll("_", " ") },
    { name: "Blocks", text: (row) => exact(row.blocks), numeric: true },
    { name: "Share", text: (row) => percent(row.blocks / total), node: (row) => [percent(row.blocks / total), shareBar(row.blocks / total, "missed")], numeric: true },
    { name: "What it means", text: (row) => row.text, node: (row) => prose(row.text), wide: true },
  ];
  say("misses-hint", misses.seconds > 0 ? `the last ${duration(misses.seconds)}` : "");
  table("misses-table", columns, misses.rows, (row) => row.reason, {
    emptyId: "misses-empty",
    empty: arena ? "Nothing was missed." : "No arena.",
  });
}

const PEER_STATES = { usable: "ok", "not synchronised": "warn", "left alone": "bad" };

export function showPeers({ hosts }) {
  const columns = [
    { name: "Address", text: (row) => row.address, title: (row) => `host ${row.host_id}` },
    { name: "State", text: (row) => row.state, node: (row) => el("span", { class: "tag", "data-state": PEER_STATES[row.state] ?? "off" }, row.state) },
    { name: "Fabrics", text: (row) => row.fabrics.join(", ") },
    { name: "Blocks there", text: (row) => count(row.hints), numeric: true },
    { name: "Fetched", text: (row) => count(row.fetched), numeric: true },
    { name: "Failed", text: (row) => count(row.failed), numeric: true },
    { name: "Its load", text: (row) => percent(row.load), numeric: true },
  ];
  say("peers-hint", hosts?.listen ? `listening on ${hosts.listen}` : "");
  table("peers-table", columns, hosts?.peers ?? [], (row) => row.host_id + row.address, {
    emptyId: "peers-empty",
    empty: hosts ? "No other host has been met yet: are they started, and do `--peers` and the keys agree?" : "Off: this host shares with no other.",
  });
}

export function showEvents({ events, at }) {
  const list = byId("events");
  show("events", events.length > 0);
  show("events-empty", events.length === 0);
  say("events-empty", "Nothing yet.");
  const mark = JSON.stringify(events.map(({ at: when, kind, amount }) => [when, kind, amount]));
  if (list.dataset.mark !== mark) {
    list.dataset.mark = mark;
    list.replaceChildren(
      ...events.map(({ at: when, level, text, amount }) =>
        el("li", { "data-level": level },
          el("time", { datetime: new Date(when * 1000).toISOString(), title: moment(when) }),
          el("span", { class: "text" }, amount ? `${exact(amount)} × ${text}` : text)),
      ),
    );
  }
  events.forEach(({ at: when }, index) => say(list.children[index].firstChild, ago(when, at)));
}

export function showJournal({ journal, namespaces, arena, at }) {
  const labels = new Map(namespaces.map(({ id, label }) => [id, label]));
  const columns = [
    { name: "Block", text: (row) => `${row.key.slice(0, 16)}…`, node: (row) => el("code", {}, `${row.key.slice(0, 16)}…`), title: (row) => `${row.key}, group ${row.group}` },
    { name: "Event", text: (row) => row.event },
    { name: "Namespace", text: (row) => labels.get(row.namespace_id) || `namespace ${row.namespace_id}`, node: (row) => named(spaceColour(row.namespace_id), labels.get(row.namespace_id) || `namespace ${row.namespace_id}`) },
    { name: "Seen", text: (row) => ago(row.seen_at, at), numeric: true },
  ];
  say("journal-hint", journal.length ? `event ${exact(journal[0].sequence)} is the newest` : "");
  table("journal-table", columns, journal.slice(0, 10), (row) => row.sequence, {
    emptyId: "journal-empty",
    empty: arena ? "No block was published or evicted yet." : "No arena.",
  });
}

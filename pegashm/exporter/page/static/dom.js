// How does text become part of the page? Always as text, never as HTML.
//
// Labels and names come from shared memory, where any process of the group may write: nothing on this page parses a
// string as markup (the Content-Security-Policy forbids it as well). Tables keep their rows between readings, so that a
// selection, a scroll position or the focus is not lost every few seconds.

export const byId = (id) => document.getElementById(id);

/** An element with properties (class, or attributes by name) and children: nodes, or anything else as text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Writes text where it differs: an unchanged node keeps its selection. */
export function say(node, text) {
  const target = typeof node === "string" ? byId(node) : node;
  if (target.textContent !== text) target.textContent = text;
}

/** A sentence in which `what one types` stands between backticks. */
export function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

export function sayProse(id, text) {
  const node = byId(id);
  if (node.dataset.said === text) return;
  node.dataset.said = text;
  node.replaceChildren(...prose(text));
}

export function show(id, visible) {
  byId(id).hidden = !visible;
}

/** A figure with its unit in a smaller type: ["38.2", "GiB"]. */
export function figure(id, [number, unit]) {
  const node = byId(id);
  if (node.dataset.shown === `${number} ${unit}`) return;
  node.dataset.shown = `${number} ${unit}`;
  node.replaceChildren(number, unit ? el("small", {}, ` ${unit}`) : "");
}

/** Name and value pairs of a <dl>; a pair whose value is null is left out. */
export function pairs(id, entries) {
  const kept = entries.filter(([, value]) => value !== null && value !== undefined);
  const list = byId(id);
  const names = kept.map(([name]) => name).join("\n");
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    list.replaceChildren(
      ...kept.map(([name]) => el("div", {}, el("dt", {}, name), el("dd", {}, ""))),
    );
  }
  kept.forEach(([, value], index) => {
    say(list.children[index].lastChild, String(value));
    list.children[index].lastChild.title = String(value);
  });
}

/**
 * A table whose rows are known by `keyOf`. `columns`: {name, text(row), node?(row), numeric?, title?(row), wide?}.
 * Nothing to show: the table goes, and `emptyId` says why.
 */
export function table(id, columns, rows, keyOf, { emptyId, empty, rowState } = {}) {
  const whole = byId(id);
  whole.hidden = rows.length === 0;
  if (emptyId) {
    show(emptyId, rows.length === 0);
    if (rows.length === 0) sayProse(emptyId, empty);
  }
  const head = whole.tHead;
  if (!head.rows.length) {
    head.append(
      el(
        "tr",
        {},
        ...columns.map(({ name, numeric }) =>
          el("th", { scope: "col", class: numeric ? "numeric" : null }, name),
        ),
      ),
    );
  }
  const body = whole.tBodies[0];
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = rows.map((row) => {
    const key = String(keyOf(row));
    const kept = known.get(key) ?? blankRow(key, columns);
    known.delete(key);
    columns.forEach((column, index) => fillCell(kept.cells[index], column, row));
    const state = rowState?.(row);
    if (state) kept.dataset.state = state;
    else delete kept.dataset.state;
    return kept;
  });
  for (const row of known.values()) row.remove();
  wanted.forEach((row, index) => {
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
}

function blankRow(key, columns) {
  const row = el("tr", { "data-key": key });
  columns.forEach(({ numeric, wide }, index) => {
    const kind = [numeric ? "numeric" : "", wide ? "wide" : ""].join(" ").trim();
    row.append(
      el(index === 0 ? "th" : "td", { class: kind || null, scope: index === 0 ? "row" : null }),
    );
  });
  return row;
}

function fillCell(cell, { text, node, title }, row) {
  const words = text(row);
  if (node) {
    const mark = `${words}|${title?.(row) ?? ""}`;
    if (cell.dataset.mark !== mark) {
      cell.dataset.mark = mark;
      cell.replaceChildren(...[node(row)].flat());
    }
  } else {
    say(cell, words);
  }
  if (title) cell.title = title(row);
}

/** What can be scrolled can be reached by the keyboard; what cannot is no stop on the way. */
export function markScrollable() {
  for (const node of document.querySelectorAll(".scroll, .events")) {
    const scrolls = node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight;
    if (scrolls) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
  }
}

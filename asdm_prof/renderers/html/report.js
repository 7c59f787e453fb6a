"use strict";
// Hover, pin, measure switch, sort, filter, copy, theme: the page can be read without any of it.
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const { nodes } = JSON.parse($("#data").textContent);

  // ---------------------------------------------------------------- theme
  const theme = $("#theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // ---------------------------------------------------------------- the card of a part
  const card = $("#card");
  const hint = $(".hint", card);
  const pictures = $$("svg[role=group]");
  const cells = pictures.flatMap((picture) => $$(".cell", picture));
  let pinned = null;
  card.hidden = false;

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }
  // Every run of a part as a dot over its axis of time, with the median and its 95 % interval.
  function drawn(name, attributes) {
    const made = document.createElementNS(pictures[0].namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  function distribution([median, low, high, ...runs]) {
    const first = Math.min(low, ...runs);
    const last = Math.max(high, ...runs);
    const at = (value) => 8 + 244 * (last > first ? (value - first) / (last - first) : 0.5);
    const picture = drawn("svg", { class: "samples", viewBox: "0 0 260 58", role: "img", "aria-label": `${runs.length} runs` });
    picture.append(
      drawn("rect", { class: "box", x: at(low), y: 4, width: Math.max(at(high) - at(low), 1), height: 30 }),
      drawn("line", { class: "median", x1: at(median), x2: at(median), y1: 2, y2: 36 }),
      drawn("line", { class: "axis", x1: 8, x2: 252, y1: 38, y2: 38 }),
      ...runs.map((run, place) => drawn("circle", { cx: at(run).toFixed(1), cy: 11 + 16 * ((place * 0.618) % 1), r: 3 })));
    for (const [value, anchor, x] of [[first, "start", 8], [last, "end", 252]]) {
      const label = drawn("text", { x, y: 54, "text-anchor": anchor });
      label.textContent = `${value} ms`;
      picture.append(label);
    }
    return picture;
  }
  function show(number) {
    for (const cell of cells) cell.classList.toggle("on", Number(cell.dataset.node) === number);
    if (number === null) return card.replaceChildren(hint);
    const node = nodes[number];
    const list = document.createElement("dl");
    for (const [name, value] of node.rows) list.append(element("dt", name), element("dd", value));
    const runs = node.samples ? [distribution(node.samples)] : [];
    card.replaceChildren(element("h3", node.name), list, ...runs, element("p", pinned === number ? "Pinned; Escape lets it go." : ""));
  }
  function pin(number) {
    pinned = pinned === number ? null : number;
    card.classList.toggle("pinned", pinned !== null);
    for (const cell of cells) cell.setAttribute("aria-pressed", String(Number(cell.dataset.node) === pinned));
    show(number);
  }
  function release() {
    pinned = null;
    card.classList.remove("pinned");
    for (const cell of cells) cell.setAttribute("aria-pressed", "false");
    show(null);
  }

  // One stop of the Tab key for each picture; arrows walk along a level and between levels.
  function neighbour(cell, key) {
    const own = $$(".cell", cell.ownerSVGElement);
    const number = Number(cell.dataset.node);
    const find = (wanted) => own.find((other) => Number(other.dataset.node) === wanted);
    if (key === "ArrowUp") return find(nodes[number].parent);
    if (key === "ArrowDown") return own.find((other) => nodes[other.dataset.node].parent === number);
    const level = own.filter((other) => other.dataset.level === cell.dataset.level);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    return step && level[level.indexOf(cell) + step];
  }
  for (const picture of pictures) {
    $$(".cell", picture).forEach((cell, place) => {
      const number = Number(cell.dataset.node);
      const title = $("title", cell);
      cell.setAttribute("aria-label", title.textContent);
      title.remove();
      cell.setAttribute("role", "button");
      cell.setAttribute("aria-pressed", "false");
      cell.setAttribute("tabindex", place ? "-1" : "0");
      cell.addEventListener("pointerenter", () => pinned === null && show(number));
      cell.addEventListener("pointerleave", () => pinned === null && show(null));
      cell.addEventListener("focus", () => {
        for (const other of $$(".cell", picture)) other.setAttribute("tabindex", other === cell ? "0" : "-1");
        if (pinned === null) show(number);
      });
      cell.addEventListener("blur", () => pinned === null && show(null));
      cell.addEventListener("click", () => pin(number));
      cell.addEventListener("keydown", (event) => {
        const next = neighbour(cell, event.key);
        if (next) next.focus();
        else if (event.key === "Enter" || event.key === " ") pin(number);
        if (event.key.startsWith("Arrow") || event.key === "Enter" || event.key === " ") event.preventDefault();
      });
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") release(); });

  // ---------------------------------------------------------------- the icicle's measure
  const icicle = $("svg.icicle");
  const captions = $$(".caption");
  const width = icicle.viewBox.baseVal.width;
  const leaves = nodes.filter((node) => node.level === "part");

  function measure(which) {
    const edges = [0];
    for (const leaf of leaves) edges.push(edges.at(-1) + leaf.measures[which]);
    const scale = width / (edges.at(-1) || 1);
    for (const cell of $$(".cell", icicle)) {
      const node = nodes[cell.dataset.node];
      const [left, right] = node.leaves.map((leaf) => edges[leaf] * scale);
      for (const box of $$("rect", cell)) {
        box.setAttribute("x", left.toFixed(2));
        box.setAttribute("width", (right - left).toFixed(2));
      }
      for (const text of $$("text", cell)) {
        text.setAttribute("x", ((left + right) / 2).toFixed(2));
        if (text.classList.contains("value")) text.textContent = node.texts[which];
        const fits = right - left >= Number(text.dataset.need);
        text.setAttribute("visibility", fits ? "visible" : "hidden");
      }
    }
    captions.forEach((caption, place) => { caption.hidden = place !== which; });
  }
  const measures = $("#measure");
  measures.hidden = false;
  measures.addEventListener("change", (event) => measure(Number(event.target.value)));

  // ---------------------------------------------------------------- the unit table
  const table = $("#table-units");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === typeof b ? a.localeCompare(b, "en", { numeric: true })
        : typeof a === "number" ? 1 : -1;

  function sort(column) {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
    body.append(...rows);
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  $(".tools").hidden = false;
  const status = $("#status");
  $("#filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      shown += !row.hidden;
    }
    status.textContent = words.length ? `${shown} of ${body.rows.length} units` : "";
  });

  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
  function csv() {
    const bounded = heads.map((_, column) => [...body.rows].some((row) => row.cells[column].dataset.low !== undefined));
    const names = heads.flatMap((head, column) => {
      const name = head.textContent.trim();
      return bounded[column] ? [name, `${name}, low`, `${name}, high`] : [name];
    });
    const rows = [...body.rows].filter((row) => !row.hidden).map((row) =>
      [...row.cells].flatMap((cell, column) => {
        const { value, low, high } = cell.dataset;
        const own = value ?? cell.textContent.trim();
        return bounded[column] ? [own, low ?? "", high ?? ""] : [own];
      }));
    return [names, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  }
  function copyBySelection(text) {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  $("#copy").addEventListener("click", async () => {
    const text = csv();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyBySelection(text);
    }
    status.textContent = "Copied.";
  });
})();

// Draws the charts of a report as SVG: values at the pointer, and a legend whose runs can be pointed at, hidden and shown.
// The data are those of aer_train/report/charts.py: {runs: [label], sections: [{heading, panels: [Panel or Bars]}]}.
"use strict";

const { runs, sections } = JSON.parse(document.getElementById("data").textContent);
const COLORS = 7, AREAS = 10, FEW = 3, LISTED = 8, HEIGHT = 220, DASHES = ["none", "7 3", "2 2"];
const MARGIN = { left: 48, right: 12, top: 8, bottom: 22 };
const hidden = new Set(), cards = [];
let focused = null;

function add(parent, name, attributes = {}, text = null) {
  const drawn = ["svg", "path", "text", "line", "rect", "circle", "title"].includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return parent.appendChild(element);
}

const paint = (place) => `--color: var(--c${place})`;
const color = (run) => (run === null ? "" : paint(run % COLORS));
const dash = (run) => `stroke-dasharray: ${DASHES[Math.floor(run / COLORS) % DASHES.length]}`;
const short = (value) => { const cut = Number(value.toPrecision(4)); return cut && Math.abs(cut) < 1e-3 ? cut.toExponential() : String(cut); };
const visible = (panel) => panel.series.filter((series) => !hidden.has(series.run));
const named = (series) => [series.run === null ? "all runs" : runs[series.run], series.note].filter(Boolean).join(", ");

function sample(parent, kind, style) {
  add(add(parent, "svg", { viewBox: "0 0 24 8" }), "path", { d: kind === "area" ? "M0 0H24V8H0Z" : "M0 4H24", class: kind, style });
}

const styleOf = (series) => (["line", "points"].includes(series.style) ? `${color(series.run)}; ${dash(series.run)}` : color(series.run));

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function scales(panel, width) {
  const shown = visible(panel), warp = panel.ticks.length ? Math.log2 : Number;
  const xs = shown.flatMap((series) => [series.x[0], series.x.at(-1)]).map(warp);
  let left = Math.min(...xs), right = Math.max(...xs), low = 0, high = 0;
  for (const series of shown) for (const list of [series.y, series.low, series.high])
    for (const value of list) { low = Math.min(low, value); high = Math.max(high, value); }
  if (left === right) { left -= 1; right += 1; }
  if (low === high) high = 1;
  const room = (high - low) * 0.05;
  if (low < 0) low -= room;
  high += room;
  const across = (width - MARGIN.left - MARGIN.right) / (right - left), down = (HEIGHT - MARGIN.top - MARGIN.bottom) / (high - low);
  return { left, right, low, high, x: (value) => MARGIN.left + (warp(value) - left) * across, y: (value) => HEIGHT - MARGIN.bottom - (value - low) * down };
}

const route = (xs, ys, { x, y }) => xs.map((value, i) => `${x(value).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("L");

function drawAxes(svg, panel, scale, width) {
  const bottom = HEIGHT - MARGIN.bottom, end = width - MARGIN.right;
  for (const value of ticks(scale.low, scale.high, 5)) {
    add(svg, "line", { x1: MARGIN.left, x2: end, y1: scale.y(value), y2: scale.y(value), class: "axis" });
    add(svg, "text", { x: MARGIN.left - 6, y: scale.y(value) + 4, "text-anchor": "end" }, short(value));
  }
  const marked = panel.ticks.length ? panel.ticks : ticks(scale.left, scale.right, Math.max(2, width / 90)).filter(Number.isInteger);
  for (const value of marked) {
    add(svg, "line", { x1: scale.x(value), x2: scale.x(value), y1: MARGIN.top, y2: bottom, class: "axis" });
    add(svg, "text", { x: scale.x(value), y: bottom + 15, "text-anchor": "middle" }, short(value));
  }
}

function drawSeries(svg, series, scale, marked) {
  const own = { "data-run": series.run === null ? "all" : series.run, style: styleOf(series) };
  const shared = series.run === null ? " shared" : "";
  if (series.low.length) {
    const outline = route([...series.x, ...series.x.toReversed()], [...series.high, ...series.low.toReversed()], scale);
    add(svg, "path", { ...own, d: `M${outline}Z`, class: `band${shared}` });
  }
  if (series.style === "marks") {
    const crosses = series.x.map((x, i) => `M${scale.x(x) - 3} ${scale.y(series.y[i]) - 3}l6 6m0 -6l-6 6`);
    add(svg, "path", { ...own, d: crosses.join(""), class: "marks" });
    return;
  }
  add(svg, "path", { ...own, d: `M${route(series.x, series.y, scale)}`, class: series.style + shared });
  if (series.style === "points" || series.style === "start" || series.x.length === 1)
    for (const [i, x] of series.x.entries()) if (!marked.length || marked.includes(x)) add(svg, "circle", { ...own, cx: scale.x(x), cy: scale.y(series.y[i]), r: 2.6, class: "dot" });
}

function drawCurves(card, width) {
  const { panel, svg } = card;
  card.scale = visible(panel).length ? scales(panel, width) : null;
  if (!card.scale) return;
  drawAxes(svg, panel, card.scale, width);
  for (const series of visible(panel)) drawSeries(svg, series, card.scale, panel.ticks);
  card.cursor = add(svg, "line", { y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, class: "cursor", visibility: "hidden" });
}

function drawBars(card, width) {
  const { panel, svg } = card, shown = [...runs.keys()].filter((run) => !hidden.has(run)), parts = Object.entries(panel.parts);
  const total = (run) => parts.reduce((sum, [, values]) => sum + values[run], 0), longest = Math.max(...shown.map(total), 1e-9);
  svg.setAttribute("height", 40 * shown.length + 4);
  for (const [row, run] of shown.entries()) {
    add(svg, "text", { x: 0, y: 40 * row + 12, "data-run": run }, `${runs[run]}: ${short(total(run))}`);
    let from = 0;
    for (const [i, [part, values]] of parts.entries()) {
      const wide = (values[run] / longest) * width;
      const bar = add(svg, "rect", { x: from, y: 40 * row + 17, width: wide, height: 15, class: "area", style: paint(i % AREAS), "data-run": run });
      add(bar, "title", {}, `${runs[run]}, ${part}: ${short(values[run])}`);
      from += wide;
    }
  }
}

function draw(card) {
  const width = card.svg.clientWidth;
  card.svg.replaceChildren();
  card.tip.hidden = true;
  (card.panel.parts ? drawBars : drawCurves)(card, width);
  emphasize(focused, card.svg);
}

function nearest(series, scale, at) {
  let best = 0;
  for (const [i, x] of series.x.entries()) if (Math.abs(scale.x(x) - at) < Math.abs(scale.x(series.x[best]) - at)) best = i;
  return { series, x: series.x[best], y: series.y[best], gap: Math.abs(scale.x(series.x[best]) - at) };
}

function point(card, event) {
  if (!card.scale) return;
  const box = card.svg.getBoundingClientRect(), at = event.clientX - box.left, height = event.clientY - box.top;
  const found = visible(card.panel).filter((series) => series.style !== "marks" && (runs.length <= FEW || series.style !== "target"))
    .map((series) => nearest(series, card.scale, at));
  const closest = found.reduce((one, other) => (other.gap < one.gap ? other : one));
  const place = card.scale.x(closest.x), off = (value) => Math.abs(card.scale.y(value.y) - height);
  const listed = found.filter((value) => Math.abs(card.scale.x(value.x) - place) < 4).sort((one, other) => off(one) - off(other)).slice(0, LISTED);
  for (const [name, value] of [["x1", place], ["x2", place], ["visibility", "visible"]]) card.cursor.setAttribute(name, value);
  card.tip.replaceChildren();
  add(card.tip, "div", {}, `${card.panel.x} ${short(closest.x)}`);
  for (const { series, y } of listed.sort((one, other) => other.y - one.y)) {
    const row = add(card.tip, "div");
    sample(row, series.style, styleOf(series));
    add(row, "b", {}, short(y));
    row.append(` ${named(series)}`);
  }
  card.tip.hidden = false;
  card.tip.style.left = `${Math.max(0, Math.min(place - card.tip.offsetWidth / 2, box.width - card.tip.offsetWidth))}px`;
  const below = box.bottom + card.tip.offsetHeight < innerHeight;  // never over the curves
  card.tip.style.top = below ? `${card.svg.nextElementSibling.offsetTop}px` : "auto";
  card.tip.style.bottom = below ? "auto" : "100%";
}

function emphasize(run, within = document) {
  focused = run;
  for (const element of within.querySelectorAll("[data-run]")) {
    const own = element.dataset.run === String(run);
    element.classList.toggle("dim", run !== null && !own && element.dataset.run !== "all");
    element.classList.toggle("focus", own);
  }
}

function legend() {
  const bar = document.getElementById("legend");
  for (const [run, label] of runs.entries()) {
    const button = add(bar, "button", { type: "button", "aria-pressed": "true", title: "click: hide or show; double click: only this run" });
    sample(button, "line", `${color(run)}; ${dash(run)}`);
    button.append(label);
    const update = () => {
      for (const [other, element] of [...bar.children].entries()) element.setAttribute("aria-pressed", String(!hidden.has(other)));
      cards.forEach(draw);
    };
    button.addEventListener("click", () => { hidden.delete(run) || hidden.add(run); update(); });
    button.addEventListener("dblclick", () => { for (const other of runs.keys()) other === run ? hidden.delete(other) : hidden.add(other); update(); });
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => emphasize(run));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => emphasize(null));
  }
}

function card(parent, panel) {
  const figure = add(parent, "figure", { class: panel.parts ? "wide" : runs.length > FEW ? "many" : "" });
  add(add(figure, "figcaption", {}, `${panel.title} `), "span", {}, panel.unit);
  const svg = add(figure, "svg", { height: HEIGHT, role: "img", "aria-label": `${panel.title}, ${panel.unit}` });
  const note = add(figure, "p", {}, [panel.x, panel.note].filter(Boolean).join("; "));
  const made = { panel, svg, scale: null, tip: add(figure, "div", { class: "tip", hidden: "" }) };
  for (const [i, part] of Object.keys(panel.parts ?? {}).entries()) {
    const key = add(note, "span");
    sample(key, "area", paint(i % AREAS));
    key.append(`${part} `);
  }
  for (const event of ["pointermove", "pointerdown"]) svg.addEventListener(event, (at) => point(made, at));
  svg.addEventListener("pointerleave", () => { made.tip.hidden = true; made.cursor?.setAttribute("visibility", "hidden"); });
  cards.push(made);
}

legend();
for (const { heading, panels } of sections) {
  const parent = document.getElementById("charts");
  add(parent, "h3", {}, heading);
  const grid = add(parent, "div", { class: "panels" });
  for (const panel of panels) card(grid, panel);
}
cards.forEach(draw);
for (const event of ["resize", "beforeprint"]) addEventListener(event, () => cards.forEach(draw));

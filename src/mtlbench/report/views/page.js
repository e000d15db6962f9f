"use strict";
// Everything that the page does: sorts and filters tables, and draws figures when they come into view.

// ---- tables ---------------------------------------------------------------------------------------------------------

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

function sort(table, heads, column) {
  const head = heads[column], before = head.getAttribute("aria-sort");
  // The first click brings the best value to the top.
  const first = head.dataset.better === "higher" ? "descending" : "ascending";
  const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
  const keyed = [...body.rows].map(row => ({ row, key: key(row.cells[column]) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);  // Blanks stay last.
    if (typeof a.key !== typeof b.key) return typeof a.key === "number" ? -1 : 1;
    return sign * (typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true }));
  });
  body.append(...keyed.map(entry => entry.row));
}

function key(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  const tools = document.createElement("div");
  tools.className = "tools";
  const label = document.createElement("label"), input = document.createElement("input");
  const output = document.createElement("output");
  input.type = "search";
  input.placeholder = "words in a row";
  label.append("Filter ", input);
  tools.append(label, output);
  table.closest(".scroll").before(tools);
  const texts = rows.map(row => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every(word => texts[i].includes(word));
      shown += !row.hidden;
    });
    output.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

// ---- texts to copy --------------------------------------------------------------------------------------------------

function copyable(box) {
  const tools = document.createElement("div"), button = document.createElement("button");
  const output = document.createElement("output");
  tools.className = "tools";
  button.type = "button";
  button.textContent = "Copy";
  tools.append(button, output);
  box.before(tools);
  button.addEventListener("click", async () => {
    output.textContent = await copied(box) ? "Copied." : "Selected. Press Ctrl+C or ⌘C to copy.";
  });
}

// Some browsers deny a local file the clipboard; the text is then selected, so that one key copies it.
async function copied(box) {
  try {
    await navigator.clipboard.writeText(box.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(box);
    return document.execCommand("copy");
  }
}

// ---- figures --------------------------------------------------------------------------------------------------------

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let library = null;

function plotly() {
  library ??= unpack(document.getElementById("library").textContent).then(source => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return window.Plotly;
  });
  return library;
}

async function draw(figure) {
  if (figure.dataset.state) return;
  figure.dataset.state = "drawing";
  const { data, layout } = JSON.parse(await unpack(figure.querySelector("script").textContent));
  const area = figure.querySelector(".area"), about = layout.meta ?? {};
  const library = await plotly();
  if (about.kind === "cost") data[1].mode = "markers";  // Labels are placed below.
  await library.newPlot(area, data, layout, { displayModeBar: false, responsive: true });
  if (about.kind === "curves") curves(library, figure, area);
  if (about.kind === "cost") cost(library, figure, area, about);
  figure.dataset.state = "drawn";
}

function control(figure, text, element) {
  let tools = figure.querySelector(".tools");
  if (!tools) {
    tools = document.createElement("div");
    tools.className = "tools";
    figure.prepend(tools);
  }
  const label = document.createElement("label");
  label.append(`${text} `, element);
  tools.append(label);
  return element;
}

function choice(names) {
  const select = document.createElement("select");
  names.forEach((name, i) => select.add(new Option(name, String(i))));
  return select;
}

function curves(library, figure, area) {
  const original = area.data.map(trace => Array.from(trace.y));
  const scale = control(figure, "Scale", choice(["linear", "logarithmic"]));
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: "0", max: "0.95", step: "0.05", value: "0" });
  control(figure, "Smoothing", range);
  scale.addEventListener("change", () => {
    const type = scale.value === "1" ? "log" : "linear", change = {};
    Object.keys(area.layout).filter(name => /^yaxis\d*$/.test(name)).forEach(name => {
      change[`${name}.type`] = type;
      change[`${name}.autorange`] = true;
    });
    library.relayout(area, change);
  });
  range.addEventListener("input", () => {
    const y = original.map((values, i) => (area.data[i].meta === "band" ? band : smooth)(values, Number(range.value)));
    library.restyle(area, { y });
  });
}

// Exponential mean, corrected for its start as in Adam, so that the first points are not pulled to 0.
function smooth(values, factor) {
  let mean = 0, weight = 0;
  return values.map(value => {
    mean = factor * mean + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return mean / weight;
  });
}

// A band is one polygon: the upper edge forwards, then the lower edge backwards.
function band(values, factor) {
  const half = values.length / 2;
  return [...smooth(values.slice(0, half), factor), ...smooth(values.slice(half).reverse(), factor).reverse()];
}

function cost(library, figure, area, about) {
  let chosen = 0;
  const select = control(figure, "Cost", choice(about.costs.map(axis => axis.title)));
  select.addEventListener("change", async () => {
    chosen = Number(select.value);
    const axis = about.costs[chosen], values = axis.values;
    await library.restyle(area, { x: [axis.front[0], values], y: [axis.front[1], area.data[1].y] });
    await library.relayout(area, {
      "xaxis.title.text": axis.title, "xaxis.type": axis.log ? "log" : "linear", "xaxis.autorange": true, annotations: [],
    });
    place();
  });
  const place = () => library.relayout(area, { annotations: labels(area, about.costs[chosen], about.references) });
  place();
  new ResizeObserver(() => requestAnimationFrame(place)).observe(area);
}

// Places names beside their points, those on the front first; a name that finds no free place is left to the tooltip.
function labels(area, axis, references) {
  const { xaxis, yaxis } = area._fullLayout, trace = area.data[1], pen = document.createElement("canvas").getContext("2d");
  pen.font = "12px system-ui, sans-serif";
  const points = trace.text.map((text, i) => ({
    text, x: axis.values[i], y: trace.y[i], px: axis.values[i] ? xaxis.d2p(axis.values[i]) : NaN, py: yaxis.d2p(trace.y[i]),
  }));
  const taken = points.filter(p => isFinite(p.px)).map(p => [p.px - 6, p.py - 6, p.px + 6, p.py + 6]);
  const order = [...new Set([...axis.on, ...references, ...points.keys()])];
  const found = [];
  for (const i of order) {
    const p = points[i];
    if (!isFinite(p.px)) continue;
    const half = pen.measureText(p.text).width / 2 + 3, spot = free(p, half, taken, xaxis._length, yaxis._length);
    if (!spot) continue;
    const [ax, ay] = spot;
    taken.push([p.px + ax - half, p.py + ay - 8, p.px + ax + half, p.py + ay + 8]);
    found.push({
      x: axis.log ? Math.log10(p.x) : p.x, y: p.y, text: p.text, ax, ay, showarrow: true, arrowhead: 0, arrowwidth: 0.7,
      arrowcolor: "#8a8f96", standoff: 6, font: { size: 12 }, borderpad: 1,
    });
  }
  return found;
}

function free(p, half, taken, width, height) {
  for (const distance of [14, 30, 48, 70]) {
    // Diagonals first: the Pareto front runs sideways from a point, and its interval up and down.
    for (const [dx, dy] of [[1, -1], [1, 1], [-1, -1], [-1, 1], [1, 0], [-1, 0], [0, -1], [0, 1]]) {
      const ax = dx * (half + distance * 0.7), ay = dy * distance;
      const [l, t, r, b] = [p.px + ax - half, p.py + ay - 8, p.px + ax + half, p.py + ay + 8];
      if (l < 0 || r > width || t < 0 || b > height) continue;
      if (taken.every(box => r < box[0] || l > box[2] || b < box[1] || t > box[3])) return [ax, ay];
    }
  }
  return null;
}

// ---- start ----------------------------------------------------------------------------------------------------------

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.filterable").forEach(filterable);
document.querySelectorAll("pre.copy").forEach(copyable);

const figures = [...document.querySelectorAll("figure.plot")];
const seen = new IntersectionObserver(entries => {
  entries.filter(entry => entry.isIntersecting).forEach(entry => draw(entry.target));
}, { rootMargin: "800px" });
figures.forEach(figure => seen.observe(figure));

// The rest follows while nothing else happens, so that a print or a search finds everything.
const idle = window.requestIdleCallback ?? (work => setTimeout(work, 50));
async function rest() {
  for (const figure of figures) {
    await new Promise(resolve => idle(resolve));
    await draw(figure);
  }
}
window.addEventListener("load", () => setTimeout(rest, 300));
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(box => { box.open = true; }));

// A figure is drawn for the window. With a view box, paper scales it to its own width instead of cutting it.
const drawings = () => document.querySelectorAll(".svg-container > .main-svg");
window.addEventListener("beforeprint", () => drawings().forEach(svg => {
  const [width, height] = [svg.getAttribute("width"), svg.getAttribute("height")];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.parentElement.style.setProperty("--ratio", `${width} / ${height}`);
}));
window.addEventListener("afterprint", () => drawings().forEach(svg => svg.removeAttribute("viewBox")));

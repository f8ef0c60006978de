"use strict";
// Figures are drawn as they come into view, from the numbers in #data alone; tables and CSV are made of the same numbers.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
// Told apart without color vision, at least 3:1 against the page; the control is drawn in the color of text.
const COLORS = {
  light: ["#0072b2", "#d55e00", "#00795c", "#a8428a", "#8a6d00", "#5b5bd6", "#8c3b12"],
  dark: ["#56b4e9", "#ff9a57", "#3fd0a5", "#f0a0d0", "#e8d44d", "#a9a9ff", "#d9b08c"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star"];
const AXES = { step: "step", tokens: "tokens", flops: "FLOPs", hours: "hours in steps" };
// 97.5 % points of Student's t for 1 to 30 degrees of freedom.
const T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131,
  2.12, 2.11, 2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042];
const figures = new Map();
const errors = [];

const known = (value) => value !== null && value !== undefined;
const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 34) => {
  // What is too much goes out of the middle: names differ at their ends.
  const front = Math.floor((most - 1) / 3);
  return text.length > most ? `${text.slice(0, front)}…${text.slice(text.length - (most - 1 - front))}` : text;
};
const armName = (number) => { const { key, name } = data.arms[number]; return key ? `${key} ${short(name, 30)}` : short(name); };
const runName = (number, most = 44) => { const run = data.runs[number], { key } = data.arms[run.arm]; return key ? `${key}, seed ${run.seed}` : short(run.label, most); };
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const wrapped = (text, width = 38) => {
  const lines = [""];
  for (const word of String(text).split(" ")) {
    if (lines[lines.length - 1] && lines[lines.length - 1].length + word.length > width) lines.push("");
    lines[lines.length - 1] += (lines[lines.length - 1] ? " " : "") + word;
  }
  return lines.map(safe).join("<br>");
};

// ---- theme -------------------------------------------------------------------------------------------------------------
let printing = false;
const remembered = { get: () => { try { return localStorage.getItem("jaxlm-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("jaxlm-theme", value); } catch { /* a page from disk may not store */ } } };
const system = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const setTheme = (theme) => {
  if (theme === "light" || theme === "dark") root.dataset.theme = theme; else delete root.dataset.theme;
  document.getElementById("theme").textContent = `Theme: ${root.dataset.theme || "system"}`;
};
const redrawAll = () => { for (const figure of figures.values()) if (figure.drawn) draw(figure); };

// ---- numbers of runs -----------------------------------------------------------------------------------------------
const along = (run, axis, step) => {
  // What a run had spent by a step: exact at the steps that are kept, on a line between them.
  if (axis === "step") return step;
  const { step: steps, [axis]: values } = data.runs[run].knots;
  if (!values || values.length < 2) return null;
  let low = 0, high = steps.length - 1;
  if (step >= steps[high]) return step === steps[high] ? values[high] : null;
  while (high - low > 1) { const middle = (low + high) >> 1; if (steps[middle] <= step) low = middle; else high = middle; }
  const share = (step - steps[low]) / (steps[high] - steps[low] || 1);
  return values[low] + share * (values[high] - values[low]);
};
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const bandOf = (values, kind) => {
  if (values.length < 2 || kind === "none") return null;
  if (kind === "range") return [Math.min(...values), Math.max(...values)];
  const middle = mean(values), n = values.length;
  const spread = Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (n - 1));
  const half = ((T[n - 2] || 1.96) * spread) / Math.sqrt(n);
  return [middle - half, middle + half];
};
const lineOf = (seed, smooth) => (smooth && seed.smooth ? seed.smooth : seed.y);
const counted = (arm) => {
  // Means are of finished runs, as the verdict's: one that ended early would bend them where it ends. Without any, of all.
  const done = arm.seeds.filter((seed) => data.runs[seed.run].finished);
  return done.length ? done : arm.seeds;
};
// An arm's curves, or how far they are above the control's: of the whole records, made before curves were thinned.
const partOf = (arm, settings) => (settings.show === "difference" ? arm.less || { steps: [], seeds: [] } : arm);
const inGap = (seed, step) => (seed.gaps || []).some(([first, last]) => first <= step && step <= last);
const joined = (part, settings) => {
  // Mean and band of an arm's seeds at every step that any of them has; none where one of them has no finite number, for the
  // mean of the others would be of those that did well.
  const points = [], seeds = counted(part), { x: axis, band } = settings;
  const lines = new Map(seeds.map((seed) => [seed, lineOf(seed, settings.smooth)]));
  part.steps.forEach((step, place) => {
    if (seeds.some((seed) => inGap(seed, step))) { points.push({ step, x: null, y: null, n: 0, band: null }); return; }
    const values = [], xs = [];
    for (const seed of seeds) {
      const value = lines.get(seed)[place], x = along(seed.run, axis, step);
      if (known(value) && known(x)) { values.push(value); xs.push(x); }
    }
    if (values.length) points.push({ step, x: mean(xs), y: mean(values), n: values.length, band: bandOf(values, band) });
  });
  return points;
};

// ---- drawing ---------------------------------------------------------------------------------------------------------
const layoutOf = (figure) => ({
  autosize: true, height: printing ? 270 : 340, margin: { l: 62, r: 14, t: 10, b: 46 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 12, color: style("--ink") },
  hoverlabel: { bgcolor: style("--raised"), bordercolor: style("--soft"), font: { color: style("--ink") }, align: "left", namelength: -1 },
  legend: { orientation: "h", font: { size: 11.5 } }, showlegend: true, uirevision: "kept",
  dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom", transition: { duration: 0 },
});
const legend = (layout, names, width) => {
  // Below the axis, with room for as many lines as it takes; on paper figures may become as narrow as in two columns.
  let lines = 1, at = 0;
  if (printing) width = Math.min(width, 560);
  const each = Math.max(...names.map((name) => 58 + 7 * name.length));
  for (const _ of names) { if (at && at + each > width - 80) { lines += 1; at = 0; } at += each; }
  layout.margin.b = 48 + 29 * lines;
  layout.height += 29 * (lines - 1);
  layout.legend = { ...layout.legend, x: 0, xref: "paper", y: 0, yref: "container", yanchor: "bottom" };
};
const axisOf = (title, logarithmic) => ({
  title: { text: safe(title), standoff: 8 }, type: logarithmic ? "log" : "-", gridcolor: style("--line"), zerolinecolor: style("--line"),
  linecolor: style("--soft"), automargin: true, ...(logarithmic ? { dtick: undefined, nticks: 8, exponentformat: "power" } : {}),
});
const look = (number) => {
  const arm = data.arms[number], others = data.arms.filter((other) => !other.control);
  if (arm.control && data.arms.length > 1) return { color: style("--ink"), dash: "solid", symbol: "circle" };
  const place = data.arms.length > 1 ? others.indexOf(arm) : 0, colors = COLORS[isDark() ? "dark" : "light"];
  return { color: colors[place % colors.length], dash: DASHES[(place + (data.arms.length > 1 ? 1 : 0)) % DASHES.length], symbol: SYMBOLS[(place + 1) % SYMBOLS.length] };
};
const faint = (color, share) => color.length === 7 && color[0] === "#"
  ? `rgba(${[1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)).join(",")},${share})` : color;

const drawCurves = (figure) => {
  const { settings, chart } = figure, metric = data.metrics[settings.metric], traces = [];
  const spread = metric.rows <= 60, width = figure.width;
  metric.arms.forEach((arm) => {
    const { color, dash, symbol } = look(arm.arm), name = safe(armName(arm.arm)), part = partOf(arm, settings);
    const points = joined(part, settings), group = `arm${arm.arm}`;
    const banded = points.filter((point) => point.band);
    if (banded.length) {
      const common = { legendgroup: group, showlegend: false, hoverinfo: "skip", mode: "lines", line: { width: 0, color }, type: "scatter" };
      traces.push({ ...common, x: banded.map((p) => p.x), y: banded.map((p) => p.band[1]) });
      traces.push({ ...common, x: banded.map((p) => p.x), y: banded.map((p) => p.band[0]), fill: "tonexty", fillcolor: faint(color, 0.16) });
    }
    const within = counted(part), alone = part.seeds.filter((seed) => (settings.seeds && part.seeds.length > 1) || !within.includes(seed) || (seed.gaps && part.seeds.length > 1));
    for (const seed of alone) traces.push({
      type: "scatter", mode: "lines", x: part.steps.map((step) => along(seed.run, settings.x, step)), y: lineOf(seed, settings.smooth),
      line: { color: faint(color, 0.65), width: 1 }, legendgroup: group, showlegend: false, connectgaps: true,
      name: safe(runName(seed.run)), hovertemplate: "%{y:.5g}" + (data.runs[seed.run].finished ? "" : ", not finished") + (seed.gaps ? ", not finite in places" : ""),
    });
    traces.push({
      type: "scatter", mode: spread ? "lines+markers" : "lines", x: points.map((p) => p.x), y: points.map((p) => p.y), name, legendgroup: group,
      line: { color, width: 2, dash }, marker: { color, size: 6, symbol }, connectgaps: false,
      customdata: points.map((p) => [p.step, p.n, p.band ? ` (${p.band[0].toPrecision(4)} to ${p.band[1].toPrecision(4)})` : ""]),
      hovertemplate: "%{y:.5g}%{customdata[2]}" + (settings.x === "step" ? "" : ", step %{customdata[0]}") + ", seeds: %{customdata[1]}",
    });
  });
  const layout = layoutOf(figure);
  layout.hovermode = "x unified";
  layout.xaxis = axisOf(AXES[settings.x], settings.logx);
  layout.xaxis.hoverformat = ".6~g";
  layout.yaxis = axisOf("", settings.logy);
  layout.yaxis.title.text = wrapped(settings.show === "difference" ? `${metric.label}, less the control's` : metric.label, 30);
  legend(layout, metric.arms.map((arm) => armName(arm.arm)), width);
  return { traces, layout };
};

const ramp = (chart) => {
  if (chart.mid === null || chart.mid === undefined) return { colorscale: isDark() ? "Cividis" : [[0, "#fdea45"], [0.25, "#bcaf6f"], [0.5, "#7c7b78"], [0.75, "#414d6b"], [1, "#00224e"]] };
  const middle = style("--raised");
  return { colorscale: [[0, "#0a5a9c"], [0.25, "#5aa5d8"], [0.5, isDark() ? "#2b3037" : middle], [0.75, "#e8915a"], [1, "#b03a00"]] };
};
const sliceOf = (figure) => {
  // The numbers of a map that are shown now: rows, columns and their names.
  const { chart, settings } = figure, run = chart.runs[settings.run], axes = chart.axes, shape = run.shape;
  const strides = shape.map((_, place) => shape.slice(place + 1).reduce((product, size) => product * size, 1));
  const overSteps = axes.length === 1 || settings.over === "steps";
  const shown = overSteps ? axes.slice(-1) : axes.slice(-2);
  const fixed = axes.slice(0, axes.length - shown.length);
  const base = fixed.reduce((sum, axis, place) => sum + Math.min(settings.at[axis] || 0, shape[place] - 1) * strides[place], 0);
  const last = axes.length - 1;
  const columns = run.labels[axes[last]];
  if (overSteps) return { rows: run.steps.map(String), rowAxis: "step", columns, columnAxis: axes[last], numeric: run.steps,
    values: run.values.map((frame) => columns.map((_, column) => frame[base + column])) };
  const rows = run.labels[axes[last - 1]], frame = run.values[Math.min(settings.frame, run.steps.length - 1)];
  return { rows, rowAxis: axes[last - 1], columns, columnAxis: axes[last],
    values: rows.map((_, row) => columns.map((_, column) => frame[base + row * strides[last - 1] + column])) };
};
const drawMap = (figure) => {
  const { chart, settings } = figure, part = sliceOf(figure), layout = layoutOf(figure), unit = chart.unit && chart.mid !== 1 ? ` ${safe(chart.unit)}` : "";
  if (settings.form === "lines" && part.rowAxis === "step") {
    const colors = COLORS[isDark() ? "dark" : "light"];
    const traces = part.columns.map((name, column) => ({
      type: "scatter", mode: part.rows.length > 60 ? "lines" : "lines+markers", x: part.numeric, y: part.values.map((row) => row[column]), name: safe(short(`${part.columnAxis} ${name}`)),
      line: { color: colors[column % colors.length], dash: DASHES[column % DASHES.length], width: 2 }, marker: { symbol: SYMBOLS[column % SYMBOLS.length], size: 6 },
      hovertemplate: "%{y:.5g}" + unit,
    }));
    layout.hovermode = "x unified";
    layout.xaxis = axisOf("step");
    layout.yaxis = axisOf("");
    layout.yaxis.title.text = wrapped(chart.unit && chart.mid !== 1 ? `${chart.title}, ${chart.unit}` : chart.title, 30);
    legend(layout, part.columns.map((name) => short(`${part.columnAxis} ${name}`)), figure.width);
    return { traces, layout };
  }
  let low = Infinity, high = -Infinity;
  for (const frame of chart.runs[settings.run].values) for (const value of frame) if (known(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  const range = known(chart.mid) ? { zmid: chart.mid, zmin: chart.mid - Math.max(high - chart.mid, chart.mid - low), zmax: chart.mid + Math.max(high - chart.mid, chart.mid - low) } : { zmin: low, zmax: high };
  const upright = part.rowAxis === "step"; // checkpoints run from left to right
  const z = upright ? part.columns.map((_, column) => part.values.map((row) => row[column])) : part.values;
  const xs = (upright ? part.rows : part.columns).map((name) => safe(short(name, 24))), ys = (upright ? part.columns : part.rows).map((name) => safe(short(name, 24)));
  const [xName, yName] = upright ? ["step", part.columnAxis] : [part.columnAxis, part.rowAxis];
  const indices = (names) => names.map((_, place) => place);
  const ticks = (names, most) => { const every = Math.ceil(names.length / most) || 1; const kept = indices(names).filter((place) => place % every === 0); return { tickmode: "array", tickvals: kept, ticktext: kept.map((place) => names[place]) }; };
  const wide = figure.width;
  const traces = [{
    type: "heatmap", x: indices(xs), y: indices(ys), z, ...range, ...ramp(chart), xgap: xs.length < 40 ? 1 : 0, ygap: ys.length < 40 ? 1 : 0,
    customdata: z.map((row, y) => row.map((_, x) => [xs[x], ys[y]])), colorbar: { thickness: 12, outlinewidth: 0, tickfont: { color: style("--ink") }, len: 1 },
    hovertemplate: `${safe(xName)} %{customdata[0]}<br>${safe(yName)} %{customdata[1]}<br>%{z:.5g}${unit}<extra></extra>`, hoverongaps: false,
  }];
  const longest = Math.max(...xs.map((name) => name.length));
  layout.xaxis = { ...axisOf(xName), ...ticks(xs, Math.max(3, Math.floor(wide / (longest > 8 ? 26 : 48)))), showgrid: false, zeroline: false };
  layout.yaxis = { ...axisOf(yName), ...ticks(ys, 14), showgrid: false, zeroline: false, autorange: upright ? true : "reversed" };
  layout.showlegend = false;
  return { traces, layout };
};

const drawBars = (figure) => {
  const { chart } = figure, colors = COLORS[isDark() ? "dark" : "light"], layout = layoutOf(figure);
  const names = data.runs.map((_, run) => safe(runName(run, 30)));
  const patterns = ["", "/", "x", "-", "|", "+", ".", "\\"];
  const traces = chart.kinds.map((kind, place) => ({
    type: "bar", orientation: "h", name: kind, y: data.runs.map((_, run) => run), x: chart.seconds.map((row) => row[place]), customdata: names,
    marker: { color: kind === "stepping" ? style("--ink") : colors[place % colors.length], pattern: { shape: kind === "stepping" ? "" : patterns[place % patterns.length], solidity: 0.35, fgcolor: style("--back") } },
    hovertemplate: `%{customdata}<br>${kind}: %{x:,.1f} s<extra></extra>`,
  }));
  layout.barmode = "stack";
  layout.height = Math.max(200, 110 + 26 * names.length);
  layout.bargap = 0.25;
  layout.xaxis = axisOf("seconds");
  layout.yaxis = { ...axisOf(""), tickmode: "array", tickvals: names.map((_, run) => run), ticktext: names, autorange: "reversed", showgrid: false, type: "linear" };
  legend(layout, chart.kinds, figure.width);
  return { traces, layout };
};

const DRAW = { curves: drawCurves, map: drawMap, bars: drawBars };
const library = () => {
  // Five megabytes of script are read when the first figure is, not before the page answers.
  if (!window.Plotly) document.head.append(make("script", { textContent: document.getElementById("plotly").textContent }));
  return window.Plotly;
};
const draw = (figure, width = 0) => {
  figure.width = width || figure.plot.clientWidth || 460;
  const { traces, layout } = DRAW[figure.chart.kind](figure);
  if (width) Object.assign(layout, { width, autosize: false });
  figure.drawn = true;
  figure.plot.style.height = `${layout.height}px`;
  library().react(figure.plot, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false, showTips: false })
    .then(() => { if (!performance.getEntriesByName("jaxlm-figure").length) performance.mark("jaxlm-figure"); })
    .catch((error) => errors.push(String(error)));
  if (!figure.numbers.hidden) fillTable(figure);
};

// ---- tables and CSV ---------------------------------------------------------------------------------------------------
const rowsOfCurves = (figure) => {
  const { settings } = figure, metric = data.metrics[settings.metric], parts = metric.arms.map((arm) => ({ arm: arm.arm, part: partOf(arm, settings) }));
  const smooth = parts.some(({ part }) => part.seeds.some((seed) => seed.smooth)), value = settings.show === "difference" ? "less_control" : "value";
  const heading = ["metric", "arm", "seed", "run", "step", "tokens", "flops", "hours", value, ...(smooth ? ["smoothed"] : [])], rows = [];
  for (const { arm, part } of parts) for (const seed of part.seeds) part.steps.forEach((step, place) => {
    const run = data.runs[seed.run];
    if (known(seed.y[place])) rows.push([settings.metric, data.arms[arm].name, run.seed, run.path, step, ...["tokens", "flops", "hours"].map((axis) => along(seed.run, axis, step)), seed.y[place], ...(smooth ? [seed.smooth ? seed.smooth[place] : null] : [])]);
  });
  return { heading, rows };
};
const rowsOfMap = ({ chart }) => {
  const heading = ["measure", "arm", "seed", "run", "step", ...chart.axes, "value"], rows = [];
  for (const one of chart.runs) {
    const run = data.runs[one.run];
    one.values.forEach((frame, time) => frame.forEach((value, place) => {
      let left = place;
      const names = one.shape.map((_, axis) => { const stride = one.shape.slice(axis + 1).reduce((product, size) => product * size, 1); const index = Math.floor(left / stride); left %= stride; return one.labels[chart.axes[axis]][index]; });
      rows.push([chart.title, data.arms[run.arm].name, run.seed, run.path, one.steps[time], ...names, value]);
    }));
  }
  return { heading, rows };
};
const rowsOfBars = ({ chart }) => ({
  heading: ["run", "path", ...chart.kinds.map((kind) => `${kind}, seconds`)],
  rows: data.runs.map((run, place) => [run.label, run.path, ...chart.seconds[place]]),
});
const tableOfCurves = (figure) => {
  const { settings } = figure, parts = data.metrics[settings.metric].arms.map((arm) => partOf(arm, settings));
  const steps = [...new Set(parts.flatMap((part) => part.steps))].sort((a, b) => a - b);
  const columns = parts.flatMap((part) => { const at = new Map(part.steps.map((step, place) => [step, place])); return part.seeds.map((seed) => ({ seed, at, shown: lineOf(seed, settings.smooth) })); });
  return { heading: ["step", ...columns.map(({ seed }) => data.runs[seed.run].label)],
    rows: steps.map((step) => [step, ...columns.map(({ shown, at }) => (at.has(step) ? shown[at.get(step)] : null))]) };
};
const tableOfMap = (figure) => {
  const part = sliceOf(figure);
  return { heading: [`${part.rowAxis} \\ ${part.columnAxis}`, ...part.columns], rows: part.rows.map((name, row) => [name, ...part.values[row]]) };
};
const ROWS = { curves: rowsOfCurves, map: rowsOfMap, bars: rowsOfBars };
const TABLE = { curves: tableOfCurves, map: tableOfMap, bars: rowsOfBars };
const cell = (value) => (!known(value) ? "" : /[",\n\r]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value));
const csvOf = (figure) => { const { heading, rows } = ROWS[figure.chart.kind](figure); return [heading, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n"; };
const download = (figure) => {
  const address = URL.createObjectURL(new Blob([csvOf(figure)], { type: "text/csv" }));
  const metric = figure.settings.metric ? `-${figure.settings.metric.replace(/\W+/g, "-")}` : "";
  make("a", { href: address, download: `${figure.id}${metric}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};
const fillTable = (figure) => {
  const { heading, rows } = TABLE[figure.chart.kind](figure), table = make("table"), head = make("tr");
  table.append(make("caption", { textContent: `${figure.title}: the numbers that are drawn` }));
  heading.forEach((name, place) => head.append(make("th", { scope: "col", textContent: name, className: place ? "num" : "" })));
  table.append(make("thead", {}, head));
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    row.forEach((value, place) => line.append(make(place ? "td" : "th", { textContent: known(value) ? (typeof value === "number" ? String(Number(value.toPrecision(6))) : value) : "–", className: place ? "num" : "", ...(place ? {} : { scope: "row" }) })));
    body.append(line);
  }
  table.append(body);
  figure.numbers.replaceChildren(table);
};

// ---- controls --------------------------------------------------------------------------------------------------------
const choice = (label, options, value, change) => {
  const select = make("select");
  options.forEach(([key, text]) => select.append(make("option", { value: key, textContent: short(text, 60) })));
  select.value = value;
  select.addEventListener("change", () => change(select.value));
  return make("label", {}, `${label} `, select);
};
const tick = (label, value, change) => {
  const box = make("input", { type: "checkbox", checked: value });
  box.addEventListener("change", () => change(box.checked));
  return make("label", {}, box, ` ${label}`);
};
const controlsOf = (figure) => {
  const { chart, settings, controls } = figure, set = (name) => (value) => { settings[name] = value; draw(figure); };
  controls.replaceChildren();
  if (chart.kind === "curves") {
    if (chart.metrics.length > 1) controls.append(choice("Show", chart.metrics.map((name) => [name, data.metrics[name].label]), settings.metric, (name) => {
      settings.metric = name;
      const says = figure.element.querySelector(".summary"), summary = data.metrics[name].summary;
      if (says) says.textContent = summary;
      figure.plot.setAttribute("aria-label", `${figure.title}: ${data.metrics[name].label}. ${summary}`);
      draw(figure);
    }));
    controls.append(tick("log x", settings.logx, set("logx")), tick("log y", settings.logy, set("logy")));
  }
  if (chart.kind === "map") {
    if (chart.runs.length > 1) controls.append(choice("Run", chart.runs.map((one, place) => [place, data.runs[one.run].label]), settings.run, (value) => { settings.run = Number(value); controlsOf(figure); draw(figure); }));
    const run = chart.runs[settings.run], several = run.steps.length > 1;
    if (chart.axes.length > 1 && several) controls.append(choice("Down", [["steps", "checkpoints"], ["axis", chart.axes[chart.axes.length - 2]]], settings.over, (value) => { settings.over = value; controlsOf(figure); draw(figure); }));
    const overSteps = chart.axes.length === 1 || settings.over === "steps";
    chart.axes.slice(0, chart.axes.length - (overSteps ? 1 : 2)).forEach((axis) => controls.append(
      choice(axis, run.labels[axis].map((name, place) => [place, name]), settings.at[axis] || 0, (value) => { settings.at[axis] = Number(value); draw(figure); })));
    if (overSteps) controls.append(choice("As", [["map", "map"], ["lines", "lines"]], settings.form, set("form")));
    else if (several) {
      settings.frame = Math.min(settings.frame, run.steps.length - 1);
      const says = make("output", { textContent: run.steps[settings.frame] });
      const slider = make("input", { type: "range", min: 0, max: run.steps.length - 1, step: 1, value: settings.frame });
      slider.setAttribute("aria-valuetext", `step ${run.steps[settings.frame]}`);
      slider.addEventListener("input", () => {
        settings.frame = Number(slider.value); says.textContent = run.steps[settings.frame];
        slider.setAttribute("aria-valuetext", `step ${run.steps[settings.frame]}`); draw(figure);
      });
      controls.append(make("label", {}, "Step ", slider, says));
    }
  }
  const table = make("button", { type: "button", textContent: "Table" }), csv = make("button", { type: "button", textContent: "CSV" });
  table.setAttribute("aria-expanded", String(!figure.numbers.hidden));
  table.setAttribute("aria-label", `Table of ${figure.title}`);
  csv.setAttribute("aria-label", `CSV of ${figure.title}`);
  table.addEventListener("click", () => {
    figure.numbers.hidden = !figure.numbers.hidden;
    table.setAttribute("aria-expanded", String(!figure.numbers.hidden));
    if (!figure.numbers.hidden) fillTable(figure);
  });
  csv.addEventListener("click", () => download(figure));
  controls.append(make("span", { className: "last" }, table, csv));
  controls.hidden = false;
};

const setUp = (element) => {
  const id = element.dataset.chart, chart = data.charts[id];
  const figure = { id, chart, element, drawn: false, title: element.querySelector("h3").textContent, plot: element.querySelector(".plot"),
    controls: element.querySelector(".controls"), numbers: element.querySelector(".numbers"), settings: {} };
  figure.numbers.tabIndex = 0;
  figure.numbers.setAttribute("role", "region");
  figure.numbers.setAttribute("aria-label", `Numbers of ${figure.title}`);
  if (chart.kind === "curves") Object.assign(figure.settings, { metric: chart.metrics[0], x: "step", show: "values", band: "range", seeds: false, smooth: true, logx: false, logy: false });
  if (chart.kind === "map") {
    const few = !chart.over_steps && chart.runs[0].shape[chart.axes.length - 1] <= 6;
    Object.assign(figure.settings, { run: 0, at: {}, frame: chart.runs[0].steps.length - 1, form: few ? "lines" : "map",
      over: chart.over_steps || chart.axes.length === 1 ? "steps" : "axis" });
  }
  figures.set(id, figure);
  controlsOf(figure);
};

// ---- the page ----------------------------------------------------------------------------------------------------------
const sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if ("plain" in head.dataset) return;
    const button = make("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === "" || right === "") return (left === "") - (right === "") || 0; // what is not known stays below
        const numbers = Number.isFinite(Number(left)) && Number.isFinite(Number(right));
        return (up ? 1 : -1) * (numbers ? Number(left) - Number(right) : left.localeCompare(right, undefined, { numeric: true }));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
};

const toolbars = () => {
  for (const bar of document.querySelectorAll("[data-toolbar]")) {
    const section = bar.closest("section");
    const inside = [...figures.values()].filter((figure) => figure.chart.kind === "curves" && section.contains(figure.element));
    if (!inside.length) { bar.remove(); continue; }
    const smoothed = inside.some((figure) => figure.chart.metrics.some((name) => data.metrics[name].arms.some((arm) => arm.seeds.some((seed) => seed.smooth))));
    if (!smoothed) bar.querySelector('[data-set="smooth"]').closest("label").remove();
    if (!data.runs.some((run) => run.knots.flops.length)) bar.querySelector('option[value="flops"]').remove();
    for (const control of bar.querySelectorAll("[data-set]")) control.addEventListener("change", () => {
      for (const figure of inside) {
        figure.settings[control.dataset.set] = control.type === "checkbox" ? control.checked : control.value;
        if (figure.drawn) draw(figure);
      }
    });
    bar.hidden = false;
  }
};

const waiting = [];
const drawNext = () => {
  // One figure at a time, so that the page answers in between.
  const figure = waiting.shift();
  try {
    if (figure && !figure.drawn) draw(figure);
  } catch (error) { // one figure must not keep the others from being drawn
    errors.push(String(error));
    console.error(error);
  }
  if (waiting.length) setTimeout(drawNext);
};
const watchViews = () => {
  const watcher = new IntersectionObserver((entries) => {
    const figuresInView = entries.filter((entry) => entry.isIntersecting).map((entry) => figures.get(entry.target.dataset.chart));
    if (!waiting.length && figuresInView.length) setTimeout(drawNext);
    waiting.push(...figuresInView.filter((figure) => !figure.drawn && !waiting.includes(figure)));
  }, { rootMargin: "200px" });
  for (const figure of figures.values()) watcher.observe(figure.element);
  performance.mark("jaxlm-interactive"); // all controls work, and figures are drawn as they come into view
  (window.requestIdleCallback || setTimeout)(() => { library(); setTimeout(drawAhead, 2000); });
};

const drawAhead = () => {
  // With time to spare the rest is drawn, one figure at a time, so that printing finds all of them there.
  const next = [...figures.values()].find((figure) => !figure.drawn);
  if (!next || !window.requestIdleCallback) return;
  requestIdleCallback(() => { if (!next.drawn && !waiting.length) { waiting.push(next); drawNext(); } setTimeout(drawAhead, 100); });
};

let folded = [], themeBefore;
const beforePrint = () => {
  printing = true;
  themeBefore = root.dataset.theme;
  root.dataset.theme = "light";
  folded = [...document.querySelectorAll("details:not([open]):not(.keep-folded)")];
  folded.forEach((details) => { details.open = true; });
  // Only colors and width change of what is drawn already; what is not yet is drawn now.
  for (const figure of figures.values()) draw(figure, 640);
};
const afterPrint = () => {
  printing = false;
  if (themeBefore) root.dataset.theme = themeBefore; else delete root.dataset.theme;
  folded.forEach((details) => { details.open = false; });
  for (const figure of figures.values()) draw(figure);
};

const begin = () => {
  document.getElementById("theme").addEventListener("click", () => {
    const next = { system: isDark() ? "light" : "dark", light: "dark", dark: "light" }[root.dataset.theme || "system"];
    remembered.set(next);
    setTheme(next);
    redrawAll();
  });
  system.addEventListener("change", redrawAll);
  window.addEventListener("beforeprint", beforePrint);
  window.addEventListener("afterprint", afterPrint);
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("figure.chart").forEach(setUp);
  toolbars();
  document.getElementById("theme").hidden = false;
  performance.mark("jaxlm-page");
};

setTheme(remembered.get());
window.addEventListener("error", (event) => errors.push(event.message));
begin();
document.addEventListener("DOMContentLoaded", watchViews);
window.jaxlmReport = { data, figures, csv: (id) => csvOf(figures.get(id)), draw: (id) => draw(figures.get(id)), errors };
})();

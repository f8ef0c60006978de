"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tokens = Array.from(document.querySelectorAll(".t"));
const panel = document.getElementById("panel");
let pinned = -1;

function cell(row, text, kind) {
  const made = row.appendChild(document.createElement("td"));
  made.textContent = text;
  if (kind) made.className = kind;
}

function percent(logProb) {
  const value = 100 * Math.exp(logProb);
  return (value >= 0.1 ? value.toFixed(1) : value.toExponential(0)) + " %";
}

function describe(token) {
  const [shown, id, logProb, rank, entropy, top, experts] = token;
  const part = document.createElement("div");
  const line = part.appendChild(document.createElement("p"));
  line.append("token ", Object.assign(document.createElement("strong"), { textContent: shown }), ` (${id})`);
  if (logProb === null) {
    line.append(": not foretold, for nothing stands before it or the loss leaves it out");
    return part;
  }
  line.append(`: log-probability ${logProb.toFixed(4)} nats, ${percent(logProb)}, rank ${rank}, entropy ${entropy.toFixed(3)} nats`);
  if (experts) line.append("; experts " + experts.map((layer, i) => `layer ${data.layers[i]}: ${layer.join(", ")}`).join("; "));
  const table = part.appendChild(document.createElement("table"));
  for (const [number, value] of top) {
    const row = table.insertRow();
    cell(row, data.names[number], "tok");
    cell(row, percent(value), "num");
    cell(row, value.toFixed(3), "num");
  }
  return part;
}

function show(index) {
  tokens.forEach((token, place) => token.classList.toggle("on", place === index));
  const token = data.tokens[index];
  panel.replaceChildren();
  const both = panel.appendChild(document.createElement("div"));
  both.className = "two";
  const here = both.appendChild(describe(token));
  here.prepend(data.against ? Object.assign(document.createElement("b"), { textContent: data.title }) : "");
  const span = data.against && token[7] !== null ? data.spans[token[7]] : null;
  if (!span) return;
  const there = both.appendChild(document.createElement("div"));
  there.append(Object.assign(document.createElement("b"), { textContent: data.against }));
  for (const other of span[3]) there.appendChild(describe(other));
  const line = document.createElement("p");
  line.textContent = span[0] === null ? "no difference: one of the two did not foretell it"
    : `difference ${(span[0] - span[1] >= 0 ? "+" : "") + (span[0] - span[1]).toFixed(4)} nats on `
      + `${span[2]}: ${span[0].toFixed(4)} against ${span[1].toFixed(4)}`;
  panel.prepend(line);
}

function choose(index, focus) {
  if (index < 0 || index >= tokens.length) return;
  if (pinned >= 0) tokens[pinned].tabIndex = -1;
  pinned = index;
  tokens[index].tabIndex = 0;
  if (focus) tokens[index].focus();
  show(index);
}

const place = (target) => tokens.indexOf(target.closest ? target.closest(".t") : null);
document.addEventListener("mouseover", (event) => { const at = place(event.target); if (at >= 0) show(at); });
document.addEventListener("mouseout", (event) => { if (place(event.target) >= 0 && pinned >= 0) show(pinned); });
document.addEventListener("click", (event) => { const at = place(event.target); if (at >= 0) choose(at, false); });
document.addEventListener("focusin", (event) => { const at = place(event.target); if (at >= 0) choose(at, false); });
document.addEventListener("keydown", (event) => {
  const at = place(event.target);
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
  const to = event.key === "Home" ? 0 : event.key === "End" ? tokens.length - 1
    : step && Math.max(0, Math.min(tokens.length - 1, at + step));
  if (to === undefined) return;
  event.preventDefault();
  choose(to, true);
});
window.addEventListener("hashchange", () => followLink());

function followLink() {
  const found = tokens.indexOf(document.getElementById(location.hash.slice(1)));
  if (found >= 0) choose(found, true);
}

document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", () => {
  document.body.dataset.mode = input.value;
}));
document.getElementById("marks").addEventListener("change", (event) => document.body.classList.toggle("marks", event.target.checked));
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
document.getElementById("csv").addEventListener("click", () => {
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const header = ["token", "id", "log_prob", "rank", "entropy"].concat(data.against ? ["stretch", "stretch_log_prob", "against_log_prob"] : []);
  const rows = data.tokens.map((token) => {
    const span = data.against && token[7] !== null ? data.spans[token[7]] : null;
    return [...token.slice(0, 5), ...(span ? [span[2], span[0], span[1]] : [])].map(quoted).join(",");
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[header.join(","), ...rows].join("\n") + "\n"], { type: "text/csv" }));
  link.download = "tokens.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});
if (tokens.length) tokens[0].tabIndex = 0;
followLink();

// Texts, numbers, and elements. No text of a run becomes markup: only text nodes are made of it.

const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufffe\uffff]/g;
const clean = text => String(text).replace(UNSEEN, "\ufffd").replace(/\p{Cs}/gu, "\ufffd");

// An attribute that is a function listens to the event of its name; null and false leave one out.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, clean(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(clean(child)));
  }
  return element;
}

const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const finite = x => typeof x === "number" && Number.isFinite(x);

function label(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 10000 || Math.abs(value) < 1e-3) {
    const [digits, power] = value.toExponential(1).split("e");
    return digits.replace(/\.0$/, "") + "e" + Number(power);
  }
  return String(Number(value.toPrecision(4)));
}

const fixed = (value, n = 4) => value.toFixed(n);
const perplexity = loss => loss < 700 ? label(Math.exp(loss)) : "above 1e304";
const memory = bytes =>
  bytes >= 1e9 ? (bytes / 1e9).toFixed(2) + " GB" : (bytes / 1e6).toFixed(0) + " MB";

function duration(seconds) {
  const whole = Math.round(seconds), days = Math.floor(whole / 86400), rest = whole % 86400;
  const two = n => String(n).padStart(2, "0");
  const clock = Math.floor(rest / 3600) + ":" + two(Math.floor(rest / 60) % 60) + ":" + two(rest % 60);
  return days ? `${days} day${days > 1 ? "s" : ""} ${clock}` : clock;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), n = sorted.length;
  return n % 2 ? sorted[(n - 1) / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

// Whether any of `values` is another one than at the last call with `kept`, an object of the caller.
function changed(kept, ...values) {
  const same = kept.values && values.every((v, i) => v === kept.values[i]);
  kept.values = values;
  return !same;
}

// A card: its element, and `draw`, which shows the run as it is now.
function card(title, ...children) {
  return h("section", {class: "card"}, title ? h("h2", null, title) : null, ...children);
}

function table(rows, head = null) {
  const top = head ? h("thead", null, h("tr", null, head.map(c => h("th", null, c)))) : null;
  const body = rows.map(row =>
    h("tr", {class: row.style || null}, row.map((c, i) => h(i ? "td" : "th", null, c))));
  return h("div", {class: "scrolls"}, h("table", null, top, h("tbody", null, body)));
}

const key = entries => h("ul", {class: "key"},
  entries.map(([style, name]) => h("li", null, h("i", {class: style}), name)));

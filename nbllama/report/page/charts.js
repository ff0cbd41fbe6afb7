// Curves as SVG, drawn for the width they are shown in.

const LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 34, MOST_DRAWN = 600;

// Means of neighbours, so that at most `most` points are left.
function thinned(list, most = MOST_DRAWN) {
  if (list.length <= most) return list;
  const found = [];
  for (let i = 0; i < most; i++) {
    const a = Math.floor(i * list.length / most), b = Math.floor((i + 1) * list.length / most);
    let x = 0, y = 0;
    for (let k = a; k < b; k++) { x += list[k][0]; y += list[k][1]; }
    found.push([x / (b - a), y / (b - a)]);
  }
  return found;
}

// Means of each point and those around it, `share` of all of them.
function smoothed(list, share = 0.05) {
  const half = Math.max(1, Math.round(share * list.length / 2)), sums = [0];
  for (const [, y] of list) sums.push(last(sums) + y);
  return list.map(([x], i) => {
    const a = Math.max(0, i - half), b = Math.min(list.length, i + half + 1);
    return [x, (sums[b] - sums[a]) / (b - a)];
  });
}

// Round numbers within low..high, some of 1, 2 or 5 times a power of ten apart.
function ticks(low, high, most = 6) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

// On a logarithmic axis: powers of ten, with 2 and 5 between them where there is room.
function logTicks(low, high, most = 6) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, most);
  const between = decades * 3 <= most ? [1, 2, 5] : [1], found = [];
  const skip = Math.max(1, Math.ceil(decades / most));
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    if (p % skip) continue;
    for (const m of between) found.push(m * 10 ** p);
  }
  return found.filter(v => v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9));
}

// Bounds of the vertical axis. Of long curves the outermost hundredth is left out: one bad step
// would hide all others.
function bounds(lines, fromZero, log) {
  const ys = lines.flatMap(line => line.points.map(p => p[1])).sort((a, b) => a - b);
  const cut = Math.floor(ys.length / 100);
  let low = ys[cut], high = ys[ys.length - 1 - cut];
  if (log) {
    const margin = (high / low) ** 0.06;
    return margin > 1.0001 ? [low / margin, high * margin] : [low / 1.1, high * 1.1];
  }
  if (fromZero) low = Math.min(0, low);
  const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [fromZero ? low : low - margin, high + margin];
}

// `lines`: {name, points, style, dots}. `how`: title, width, height, show, fromZero, logX, logY.
function chart(lines, how) {
  const {title, width = 420, height = 230, show = label, fromZero = false} = how;
  const kept = p => !(how.logX && p[0] <= 0) && !(how.logY && p[1] <= 0);
  lines = lines.map(line => ({...line, points: line.points.filter(kept)}));
  lines = lines.filter(line => line.points.length);
  if (!lines.length) return h("p", {class: "none"}, `${title}: nothing to draw yet`);
  const [low, high] = bounds(lines, fromZero && !how.logY, how.logY);
  const xs = lines.flatMap(line => [line.points[0][0], last(line.points)[0]]);
  let first = Math.min(...xs), end = Math.max(...xs);
  if (first === end) [first, end] = how.logX ? [first / 2, end * 2] : [first - 1, end + 1];
  const across = width - LEFT - RIGHT, up = height - TOP - BOTTOM, base = height - BOTTOM;
  const place = (log, v, a, b) =>
    log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
  const x = v => (LEFT + across * place(how.logX, v, first, end)).toFixed(1);
  const y = v =>
    (base - up * place(how.logY, Math.min(Math.max(v, low), high), low, high)).toFixed(1);
  const parts = [svg("title", null, title)];
  const rows = Math.max(2, Math.floor(height / 45)), columns = Math.max(2, Math.floor(width / 90));
  for (const v of (how.logY ? logTicks : ticks)(low, high, rows)) {
    parts.push(svg("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v)}));
    const at = {class: "tick", x: LEFT - 7, y: Number(y(v)) + 4, "text-anchor": "end"};
    parts.push(svg("text", at, show(v)));
  }
  for (const v of (how.logX ? logTicks : ticks)(first, end, columns)) {
    if (v !== Math.floor(v)) continue;
    const at = {class: "tick", x: x(v), y: base + 18, "text-anchor": "middle"};
    parts.push(svg("text", at, String(v)));
  }
  parts.push(svg("line", {class: "axis", x1: LEFT, x2: width - RIGHT, y1: base, y2: base}));
  for (const line of lines) {
    const drawn = thinned(line.points);
    let path = "M" + drawn.map(p => x(p[0]) + "," + y(p[1])).join("L");
    if (drawn.length === 1) path += "h0.01"; // with round ends, a dot
    parts.push(svg("path", {class: `curve ${line.style}`, d: path}));
    if (!line.dots) continue;
    for (const p of drawn) {
      const tip = svg("title", null, `${line.name}, iteration ${label(p[0])}: ${show(p[1])}`);
      const at = {class: `dot ${line.style}`, cx: x(p[0]), cy: y(p[1]), r: 3.5};
      parts.push(svg("circle", at, tip));
    }
  }
  const box = {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title};
  return svg("svg", box, parts);
}

// A histogram: [label, count] from left to right; the first, the middle and the last are labelled.
function bars(counts, title, width = 420, height = 190) {
  const most = Math.max(0, ...counts.map(c => c[1]));
  if (!most) return null;
  const step = (width - LEFT - RIGHT) / counts.length, base = height - BOTTOM;
  const up = height - TOP - BOTTOM, parts = [svg("title", null, title)];
  for (const v of ticks(0, most, 4)) {
    if (v !== Math.floor(v)) continue;
    const y = (base - up * v / most).toFixed(1);
    parts.push(svg("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y}));
    const at = {class: "tick", x: LEFT - 7, y: Number(y) + 4, "text-anchor": "end"};
    parts.push(svg("text", at, String(v)));
  }
  const written = new Set([0, Math.floor(counts.length / 2), counts.length - 1]);
  counts.forEach(([name, n], i) => {
    const x = LEFT + i * step, tall = up * n / most;
    const box = {class: "bar", x: (x + 1).toFixed(1), y: (base - tall).toFixed(1)};
    Object.assign(box, {height: tall.toFixed(1), width: Math.max(1, step - 2).toFixed(1)});
    parts.push(svg("rect", box, svg("title", null, `${name} tokens: ${n}`)));
    const at = {class: "tick", x: x + step / 2, y: base + 18, "text-anchor": "middle"};
    if (written.has(i)) parts.push(svg("text", at, name));
  });
  parts.push(svg("line", {class: "axis", x1: LEFT, x2: width - RIGHT, y1: base, y2: base}));
  return svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title}, parts);
}

// Buttons of which one is pressed; `pick` gets its word.
function choice(name, words, pick) {
  const box = h("div", {class: "choice", role: "group", "aria-label": name});
  const buttons = words.map((word, i) => h("button", {
    type: "button", "aria-pressed": String(i === 0), click: () => {
      for (const b of buttons) b.setAttribute("aria-pressed", String(b === buttons[i]));
      pick(word);
    },
  }, word));
  fill(box, null, [h("span", null, name), ...buttons]);
  return box;
}

// Norms by block and iteration as pictures: one pixel row a block, colours by the logarithm.

const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(at), STOPS.length - 2), part = at - i;
  return STOPS[i].map((c, k) => Math.round(c + (STOPS[i + 1][k] - c) * part));
}

const ALL = "all tensors";

// Names of tensors that have a norm in each block, and rows of one of them (or of all together).
function tensorNames(norms, what) {
  const names = new Set(norms.flatMap(row => Object.keys(row[what])));
  return [ALL, ...names];
}

function column(row, what, name) {
  const found = name === ALL ? Object.values(row[what]) : [row[what][name] || []];
  const blocks = Math.max(0, ...found.map(f => f.length));
  return Array.from({length: blocks}, (_, i) => {
    const squares = found.map(f => f[i]).filter(finite).map(v => v * v);
    return squares.length ? Math.sqrt(squares.reduce((a, b) => a + b)) : null;
  });
}

// A canvas with a column for each measured iteration; null without any number above 0.
function heatMap(run, what, name) {
  const columns = run.norms.map(row => ({iter: row.iter, found: column(row, what, name)}));
  const blocks = Math.max(0, ...columns.map(c => c.found.length));
  const all = columns.flatMap(c => c.found).filter(v => finite(v) && v > 0);
  if (!all.length) return null;
  const low = Math.min(...all), high = Math.max(...all), range = Math.log(high / low) || 1;
  const canvas = h("canvas", {width: columns.length, height: blocks, class: "heat"});
  const pixels = canvas.getContext("2d").createImageData(columns.length, blocks);
  columns.forEach((c, x) => c.found.forEach((v, block) => {
    if (!finite(v)) return;
    const rgb = colour(v > 0 ? Math.log(v / low) / range : 0);
    pixels.data.set([...rgb, 255], 4 * ((blocks - 1 - block) * columns.length + x));
  }));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return {canvas, columns, blocks, low, high};
}

function heatFigure(run, what, name, title) {
  const made = heatMap(run, what, name);
  if (!made) return h("p", {class: "none"}, `${title}: nothing measured yet`);
  const {canvas, columns, blocks, low, high} = made;
  const place = block => block < inside ? `block ${block}` : "outside the blocks";
  const inside = last(run.norms).blocks || blocks;
  const plain = `darkest ${label(low)}, brightest ${label(high)}`;
  const read = h("p", {class: "note read"}, plain);
  fill(canvas, {
    role: "img", "aria-label": title,
    mousemove: e => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor((e.clientX - box.left) / box.width * columns.length);
      const block = blocks - 1 - Math.floor((e.clientY - box.top) / box.height * blocks);
      const c = columns[x], v = c && c.found[block];
      read.textContent = c && finite(v)
        ? `iteration ${c.iter}, ${place(block)}: ${label(v)}` : plain;
    },
    mouseleave: () => { read.textContent = plain; },
  }, []);
  const rows = h("div", {class: "rows"}, h("span", null, blocks - 1), h("span", null, 0));
  const iterations = h("div", {class: "iterations"},
    h("span", null, columns[0].iter), h("span", null, "iteration"), h("span", null, last(columns).iter));
  return h("figure", null, h("figcaption", null, title),
    h("div", {class: "heatbox"}, rows, canvas, iterations), read);
}

function heatCard(run) {
  let name = ALL, known = "";
  const kept = {};
  const select = h("select", {"aria-label": "tensor", change: () => { name = select.value; draw(); }});
  const figures = h("div", {class: "grid2 plain"});
  const element = card("Where it learns",
    h("p", {class: "lead"}, "Norms of the gradient and of the change of the adapter, block by block "
      + "(the first at the bottom), over the iterations that were measured; brighter is larger."),
    h("label", {class: "pick"}, "Tensor ", select), figures);
  function draw() {
    element.hidden = !run.norms.length;
    if (element.hidden || !changed(kept, name, run.norms.length, last(run.norms))) return;
    const names = tensorNames(run.norms, "gradient");
    if (names.join() !== known) {
      known = names.join();
      select.replaceChildren(...names.map(n => h("option", {value: n}, n)));
      select.value = names.includes(name) ? name : ALL;
    }
    figures.replaceChildren(
      heatFigure(run, "gradient", name, "Norm of the gradient"),
      heatFigure(run, "update", name, "Norm of the change in one iteration"));
  }
  return {element, draw};
}

// The training text, each token coloured by its loss.

const DARKEST = 6, SHADES = 8; // nats; classes l0 to l8 of the style sheet
const shade = loss => Math.round(Math.min(Math.max(loss / DARKEST, 0), 1) * SHADES);
const visible = piece => piece.replace(/\n/g, "\u23ce\n").replace(/\t/g, "\u21e5\t");

function tokenText(row) {
  const spans = row.pieces.map((piece, i) => {
    const loss = row.losses[i];
    if (!finite(loss)) return h("span", {class: "given"}, visible(piece));
    const tip = `loss ${loss.toFixed(3)}, probability ${Math.exp(-loss).toPrecision(2)}`;
    return h("span", {class: `tok l${shade(loss)}`, title: tip}, visible(piece));
  });
  return h("p", {class: "text tokens"}, spans);
}

// Texts by what they are: [name, rows]. Sample 0 is what passes by, the others are followed.
function textGroups(run) {
  const groups = new Map();
  for (const row of run.texts) {
    if (!groups.has(row.sample)) groups.set(row.sample, []);
    groups.get(row.sample).push(row);
  }
  return [...groups].sort((a, b) => a[0] - b[0]).map(([sample, rows]) =>
    [sample, sample ? `sample ${sample}, seen ${rows.length} times`.replace(" 1 times", " once")
      : "current samples", rows]);
}

function tokenCard(run) {
  let sample = null, at = null, known = "";
  const kept = {};
  const select = h("select", {"aria-label": "text", change: () => {
    sample = Number(select.value); at = null; draw();
  }});
  const slider = h("input", {type: "range", min: 0, value: 0, "aria-label": "iteration", input: () => {
    at = Number(slider.value) === Number(slider.max) ? null : Number(slider.value);
    draw();
  }});
  const when = h("span", {class: "note"}), body = h("div");
  const scale = h("p", {class: "scale note"}, "loss 0 ",
    Array.from({length: SHADES + 1}, (_, i) => h("i", {class: `tok l${i}`}, "\u00a0\u00a0")),
    ` ${DARKEST} or more nats; grey: not trained`);
  const element = card("What it reads",
    h("p", {class: "lead"}, "Training text with per-token losses: the darker a token, the less expected "
      + "it was. Tracked samples show what the model learns from one epoch to the next."),
    h("div", {class: "pick"}, h("label", null, "Text ", select), slider, when), body, scale);
  function draw() {
    element.hidden = !run.texts.length;
    if (element.hidden || !changed(kept, sample, at, run.texts.length, last(run.texts))) return;
    const groups = textGroups(run);
    const names = groups.map(g => g[1]).join();
    if (sample === null || !groups.some(g => g[0] === sample)) sample = groups[0][0];
    if (names !== known) {
      known = names;
      select.replaceChildren(...groups.map(g => h("option", {value: g[0]}, g[1])));
      select.value = sample;
    }
    const rows = groups.find(g => g[0] === sample)[2];
    slider.hidden = rows.length < 2;
    slider.max = rows.length - 1;
    const i = at === null ? rows.length - 1 : Math.min(at, rows.length - 1);
    slider.value = i;
    const losses = rows[i].losses.filter(finite);
    const mean = losses.length ? losses.reduce((a, b) => a + b) / losses.length : null;
    when.textContent = `iteration ${rows[i].iter}`
      + (mean === null ? "" : `, mean ${mean.toFixed(3)}`);
    body.replaceChildren(tokenText(rows[i]));
  }
  return {element, draw};
}

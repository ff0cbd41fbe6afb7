// The parts of the page about one run.

const WHEN = iter => iter === 0 ? "before" : `iteration ${iter}`;

function headCard(run, controls) {
  const about = h("p", {class: "about"}), notes = h("div", {class: "notes"});
  const element = h("header", null,
    h("div", {class: "top"}, h("h1", null, run.name), controls), about, notes);
  function draw() {
    const of = run.n_iter ? ` of ${run.n_iter}` : "";
    const parts = [run.started ? `started ${run.started}` : "", `iteration ${run.iter}${of}`];
    about.textContent = clean([...parts, run.state].filter(Boolean).join(" \u00b7 "));
    const warnings = run.notes.filter(text => /^warning/i.test(text));
    notes.replaceChildren(...warnings.map(text => h("p", {class: "warning"}, text)));
  }
  return {element, draw};
}

function tiles(run, live) {
  const found = [], losses = run.series.loss[1], validation = values(run, "val_loss");
  const {first, last: end, over} = run.verdict || {};
  if (finite(first) && finite(end))
    found.push([fixed(end), `training loss, ${fixed(first)} over the first ${over}`]);
  else if (losses.length)
    found.push([fixed(last(losses)), `training loss, initially ${fixed(losses[0])}`]);
  if (validation.length) {
    const [at, best] = validation.reduce((a, b) => b[1] < a[1] ? b : a);
    found.push([fixed(best), `best validation loss, iteration ${at}`]);
    found.push([perplexity(best), `validation perplexity, initially ${perplexity(validation[0][1])}`]);
  }
  if (run.seconds) {
    found.push([(run.tokens / run.seconds).toFixed(0), "tokens per second"]);
    if (live && run.recent.length && run.n_iter >= run.iter)
      found.push([duration(median(run.recent) * (run.n_iter - run.iter)), "left"]);
    found.push([duration(run.seconds), `in ${run.steps} iterations`]);
  }
  if (run.memory) found.push([memory(run.memory), "peak memory"]);
  return found;
}

function tileCard(run, isLive) {
  const element = h("div", {class: "tiles"});
  const draw = () => {
    const found = tiles(run, isLive());
    element.hidden = !found.length;
    element.replaceChildren(...found.map(([value, text]) =>
      h("div", {class: "tile"}, h("b", null, value), h("span", null, text))));
  };
  return {element, draw};
}

const widthOf = element => Math.max(280, Math.min(element.clientWidth || 420, 1000));

// A card with curves, which `lines` makes anew at each drawing; [lines, key].
function curveCard(title, name, lines, how = {}) {
  const axes = {logX: false, logY: false}, place = h("div");
  const pick = axis => word => { axes[axis] = word === "log"; draw(); };
  const head = h("div", {class: "top"}, h("h2", null, title),
    h("div", {class: "choices"}, choice(how.axis || "values", ["linear", "log"], pick("logY")),
      how.both ? choice("iterations", ["linear", "log"], pick("logX")) : null));
  const element = h("section", {class: "card"}, head, place);
  function draw() {
    const [found, entries] = lines(), width = widthOf(place);
    const height = how.tall ? Math.max(270, Math.min(340, width * 0.4)) : 230;
    place.replaceChildren(
      chart(found, {title: name, width, height, show: how.show, fromZero: how.fromZero, ...axes}),
      entries.length ? key(entries) : "");
  }
  return {element, draw};
}

function lossCard(run) {
  return curveCard("Loss", "Loss by iteration", () => {
    const steps = points(run, "loss"), validation = values(run, "val_loss");
    const entries = [["train", "training, thin line: each iteration"]];
    if (validation.length) entries.push(["val", "validation"]);
    return [[
      {name: "training", points: steps, style: "raw"},
      {name: "training, smoothed", points: smoothed(steps), style: "train"},
      {name: "validation", points: validation, style: "val", dots: validation.length <= 200},
    ], entries];
  }, {tall: true, both: true, axis: "loss"});
}

const OTHERS = [
  ["Learning rate", "lr", label], ["Gradient norm", "grad_norm", label],
  ["Tokens per second", "tokens_per_s", label], ["Memory", "rss_bytes", memory],
];

function otherCards(run) {
  const cards = OTHERS.map(([title, name, show]) => curveCard(title, `${title} by iteration`, () => {
    const found = points(run, name), lines = [{name: title, points: found, style: "other"}];
    const limit = run.forecast.peak_bytes, entries = [];
    if (name === "rss_bytes" && limit && found.length) {
      const ends = [[found[0][0], limit], [last(found)[0], limit]];
      lines.push({name: "forecast peak", points: ends, style: "limit"});
      entries.push(["limit", "forecast peak"]);
    }
    return [lines, entries];
  }, {show, fromZero: true}));
  const element = h("div", {class: "grid2"}, cards.map(c => c.element));
  return {element, draw: () => cards.forEach(c => c.draw())};
}

// Of a run on preferences; hidden in others.
function preferenceCards(run) {
  const both = (title, name) => curveCard(title, `${title} by iteration`, () => [[
    {name: "chosen", points: points(run, `${name}_chosen`), style: "train"},
    {name: "rejected", points: points(run, `${name}_rejected`), style: "val"},
  ], [["train", "chosen, or good"], ["val", "rejected, or bad"]]], {show: label});
  const one = (title, name) => curveCard(title, `${title} by iteration`, () =>
    [[{name: title, points: points(run, name), style: "other"}], []], {show: label});
  const cards = [one("Reward margin", "margin"), one("Share ranked correctly", "accuracy"),
    both("Log-probability per answer", "logp"), both("Tokens per answer", "tokens")];
  const element = h("div", {class: "grid2"}, cards.map(c => c.element));
  function draw() {
    element.hidden = !points(run, "accuracy").length;
    if (!element.hidden) cards.forEach(c => c.draw());
  }
  return {element, draw};
}

// Of a run on rewards; hidden in others.
function rewardCards(run) {
  const one = (title, name) => curveCard(title, `${title} by iteration`, () =>
    [[{name: title, points: points(run, name), style: "other"}], []], {show: label});
  const cards = [one("Mean reward", "reward"), one("Spread of rewards", "reward_std"),
    one("KL to the reference, nats per token", "kl"), one("Tokens per answer", "answer_tokens"),
    one("Groups with equal rewards", "same"), one("Answers per second", "answers_per_s")];
  const element = h("div", {class: "grid2"}, cards.map(c => c.element));
  function draw() {
    element.hidden = !points(run, "reward").length;
    if (!element.hidden) cards.forEach(c => c.draw());
  }
  return {element, draw};
}

function sampleCard(run) {
  const body = h("div");
  const element = card("Sample answers", body, h("p", {class: "note"},
    "Greedy answers at each evaluation. Coloured: evaluations with a new lowest validation loss."));
  const kept = {};
  function draw() {
    if (!changed(kept, run.evaluations.length, last(run.evaluations))) return;
    const asked = new Map();
    for (const e of run.evaluations) for (const s of e.samples) {
      if (!asked.has(s.prompt)) asked.set(s.prompt, []);
      asked.get(s.prompt).push([e, s.answer, s.reward]);
    }
    element.hidden = !asked.size;
    body.replaceChildren(...[...asked].map(([prompt, answers]) => {
      const rows = answers.map(([e, answer, reward]) => h("tr", {class: e.best ? "best" : null},
        h("td", {class: "n"}, WHEN(e.iter)), reward ? h("td", {class: "n"}, `reward ${reward}`) : null,
        h("td", {class: "text"}, answer || h("span", {class: "none"}, "(nothing)"))));
      return h("div", {class: "sample"}, h("p", {class: "prompt text"}, prompt),
        h("table", {class: "answers"}, h("tbody", null, rows)));
    }));
  }
  return {element, draw};
}

function dataCard(run) {
  const data = h("div"), lengths = h("div");
  const element = h("div", {class: "grid2"}, card("Data", data), card("Lengths", lengths));
  const kept = {};
  function draw() {
    element.hidden = !run.data.length;
    if (!changed(kept, run.data, run.lengths, widthOf(lengths))) return;
    data.replaceChildren(table(run.data));
    lengths.replaceChildren(bars(run.lengths, "Samples by length", widthOf(lengths)) || "",
      h("p", {class: "note"}, "Samples by length in tokens."));
  }
  return {element, draw};
}

function forecastCard(run) {
  const body = h("div"), element = card("Forecast and actual values", body);
  function draw() {
    const rows = [], {seconds, peak_bytes: peak} = run.forecast;
    if (finite(seconds) && run.steps) {
      const mean = run.seconds / run.steps;
      rows.push(["time per iteration", `${seconds.toFixed(2)} s`, `${mean.toFixed(2)} s`]);
    }
    if (finite(peak) && finite(run.peak_bytes))
      rows.push(["peak memory", memory(peak), memory(run.peak_bytes)]);
    element.hidden = !rows.length;
    body.replaceChildren(table(rows, ["", "forecast", "actual"]));
  }
  return {element, draw};
}

function evaluationCard(run) {
  const body = h("div");
  const element = h("section", {class: "card"},
    h("details", {open: true}, h("summary", null, "Evaluations"), body));
  const kept = {};
  function draw() {
    if (!changed(kept, run.evaluations.length, last(run.evaluations))) return;
    const rows = run.evaluations.filter(e => finite(e.val_loss)).map(e => {
      const mean = finite(e.train_loss) ? fixed(e.train_loss) : "";
      return Object.assign([String(e.iter), fixed(e.val_loss), perplexity(e.val_loss), mean],
        {style: e.best ? "best" : ""});
    });
    element.hidden = !rows.length;
    body.replaceChildren(table(rows,
      ["iteration", "validation loss", "perplexity", "training loss since the last evaluation"]));
  }
  return {element, draw};
}

function commandCard(run) {
  const body = h("dl", {class: "commands"}), element = card("Next", body);
  function draw() {
    element.hidden = !run.commands.length || run.state === "running";
    body.replaceChildren(...run.commands.flatMap(([what, command]) =>
      [h("dt", null, what), h("dd", null, h("code", null, command))]));
  }
  return {element, draw};
}

function verdictCard(run) {
  const body = h("div"), element = card("Results", body);
  function draw() {
    const found = run.verdict;
    element.hidden = !found;
    if (!found) return;
    const rows = found.answers.map(a => [a.question, a.kind, a.wanted, a.before, a.after]
      .map(x => h("span", {class: "text"}, x)));
    rows.forEach((row, i) => { row.style = found.answers[i].right ? "best" : ""; });
    body.replaceChildren(
      h("p", {class: "verdict"}, h("b", null, found.word), found.reason ? `: ${found.reason}` : ""),
      rows.length ? table(rows, ["question", "", "in the data", "before", "after"]) : "");
  }
  return {element, draw};
}

function optionCard(run) {
  const body = h("div");
  const element = h("section", {class: "card"},
    h("details", null, h("summary", null, "Options"), body));
  const kept = {};
  function draw() {
    element.hidden = !run.options.length;
    if (!changed(kept, run.options)) return;
    body.replaceChildren(table(run.options));
  }
  return {element, draw};
}

function footer(runs) {
  const versions = [...new Set(runs.map(run => run.version))].join(", ");
  return {element: h("footer", null, `nbllama ${versions}. Losses are nats per trained token.`),
    draw: () => {}};
}

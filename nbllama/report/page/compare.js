// The page that compares several runs.

function comparison(runs) {
  const style = i => `run${i}`, keys = runs.map((run, i) => [style(i), run.name]);
  const head = {
    element: h("header", null, h("h1", null, "Comparison of runs"),
      key(keys)), draw: () => {},
  };
  const loss = curveCard("Training loss", "Training loss by iteration", () => [
    runs.map((run, i) => ({name: run.name, points: smoothed(points(run, "loss")), style: style(i)})),
    keys], {tall: true, both: true, axis: "loss"});
  const validation = curveCard("Validation loss", "Validation loss by iteration", () => [
    runs.map((run, i) =>
      ({name: run.name, points: values(run, "val_loss"), style: style(i), dots: true})),
    keys], {tall: true, both: true, axis: "loss"});
  const hasValidation = runs.some(run => values(run, "val_loss").length);
  const others = OTHERS.map(([title, name, show]) => curveCard(title, `${title} by iteration`, () => [
    runs.map((run, i) => ({name: run.name, points: points(run, name), style: style(i)})), [],
  ], {show, fromZero: true}));
  const grid = {element: h("div", {class: "grid2"}, others.map(c => c.element)),
    draw: () => others.forEach(c => c.draw())};
  return [head, resultCard(runs), loss, ...(hasValidation ? [validation] : []), grid,
    differenceCard(runs), answerCard(runs), footer(runs)];
}

// One row a number, one column a run; the best of a row is marked.
function resultCard(runs) {
  const best = run => {
    const found = values(run, "val_loss");
    return found.length ? found.reduce((a, b) => b[1] < a[1] ? b : a) : null;
  };
  const lastMean = run => {
    const found = smoothed(points(run, "loss"));
    return found.length ? last(found)[1] : null;
  };
  const rows = [
    ["training loss at the end, smoothed", lastMean, fixed, Math.min],
    ["lowest validation loss", run => best(run) && best(run)[1], fixed, Math.min],
    ["at iteration", run => best(run) && best(run)[0], String, null],
    ["iterations", run => run.iter, String, null],
    ["time", run => run.seconds || null, duration, Math.min],
    ["tokens per second", run => run.seconds ? run.tokens / run.seconds : null,
      v => v.toFixed(0), Math.max],
    ["peak memory", run => run.memory, memory, Math.min],
    ["state", run => run.state, String, null],
  ];
  const body = rows.map(([what, find, show, pick]) => {
    const found = runs.map(find), numbers = found.filter(finite);
    const top = pick && new Set(numbers).size > 1 ? pick(...numbers) : null;
    return h("tr", null, h("th", null, what), found.map(v =>
      h("td", {class: top !== null && v === top ? "best" : null}, v === null ? "" : show(v))));
  });
  const top = h("tr", null, h("th"), runs.map((run, i) =>
    h("th", null, h("i", {class: `mark run${i}`}), run.name)));
  const made = h("table", {class: "results"}, h("thead", null, top), h("tbody", null, body));
  return {element: card("Results", h("div", {class: "scrolls"}, made)), draw: () => {}};
}

function differenceCard(runs) {
  const found = differences(runs), names = ["", ...runs.map(run => run.name)];
  const body = found.length ? table(found, names)
    : h("p", {class: "none"}, "none: every option has the same value in all of these logs");
  return {element: card("Options that differ", body), draw: () => {}};
}

function answerCard(runs) {
  const asked = new Map();
  runs.forEach((run, i) => {
    for (const e of run.evaluations) for (const s of e.samples) {
      if (!asked.has(s.prompt)) asked.set(s.prompt, []);
      asked.get(s.prompt)[i] = [e.iter, s.answer]; // the last one
    }
  });
  const blocks = [...asked].map(([prompt, answers]) => h("div", {class: "sample"},
    h("p", {class: "prompt text"}, prompt),
    h("table", {class: "answers"}, h("tbody", null, runs.map((run, i) => answers[i]
      ? h("tr", null, h("td", {class: "n"}, `${run.name}, ${WHEN(answers[i][0])}`),
        h("td", {class: "text"}, answers[i][1] || "(nothing)")) : null)))));
  const element = card("Last answers", blocks);
  element.hidden = !asked.size;
  return {element, draw: () => {}};
}

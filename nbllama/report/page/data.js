// A run as it grows: what `nbllama.report.payload` makes of a log, and each further row of it.

const MOST_POINTS = 4000, MOST_NORMS = 512, MOST_TEXTS = 400, MOST_QUESTIONS = 200;
const SERIES = ["loss", "lr", "grad_norm", "tokens_per_s", "rss_bytes", "seconds", "margin", "accuracy",
  "logp_chosen", "logp_rejected", "tokens_chosen", "tokens_rejected", "reward", "reward_std", "kl",
  "answer_tokens", "same", "answers_per_s"];

const points = (run, name) => {
  const [xs, ys] = run.series[name];
  return xs.map((x, i) => [x, ys[i]]);
};
const values = (run, name) =>
  run.evaluations.filter(e => finite(e[name])).map(e => [e.iter, e[name]]);
const last = list => list[list.length - 1];

// Means of pairs of neighbours: half as many.
function halved(list) {
  const found = [];
  for (let i = 0; i + 1 < list.length; i += 2) found.push((list[i] + list[i + 1]) / 2);
  if (list.length % 2) found.push(last(list));
  return found;
}

function addStep(run, row) {
  for (const name of SERIES) {
    if (!finite(row[name])) continue;
    const [xs, ys] = run.series[name];
    xs.push(row.iter);
    ys.push(row[name]);
    if (xs.length > MOST_POINTS) run.series[name] = [halved(xs), halved(ys)];
  }
  run.iter = row.iter;
  run.n_iter = row.n_iter || run.n_iter;
  run.steps += 1;
  run.seconds += row.seconds || 0;
  run.tokens += row.tokens || 0;
  if (finite(row.rss_bytes)) run.memory = Math.max(run.memory || 0, row.rss_bytes);
  if (finite(row.seconds)) run.recent = [...run.recent, row.seconds].slice(-11);
}

function addQuestion(run, row) {
  const at = run.questions.findIndex(q => q.id === row.id && q.prompt === row.prompt && !q.done);
  if (at >= 0) run.questions[at] = row;
  else run.questions.push(row);
  run.questions = run.questions.slice(-MOST_QUESTIONS);
}

function add(run, row) {
  if (row.event === "step") addStep(run, row);
  else if (row.event === "evaluation") run.evaluations.push(row);
  else if (row.event === "norms") {
    run.norms.push(row);
    if (run.norms.length > MOST_NORMS) run.norms = run.norms.filter((_, i) => i % 2 === 0);
  } else if (row.event === "tokens") {
    // one that is not kept makes room for the next
    if (run.texts.length && last(run.texts).passing) run.texts.pop();
    run.texts.push(row);
    run.texts = run.texts.slice(-MOST_TEXTS);
  } else if (row.event === "question") addQuestion(run, row);
  else if (row.event === "note") run.notes = [...run.notes, row.text].slice(-20);
}

// What differs between the options of runs: [name, value of each run].
function differences(runs) {
  const maps = runs.map(run => new Map(run.options));
  const names = new Set(maps.flatMap(m => [...m.keys()]));
  return [...names].map(name => [name, ...maps.map(m => m.has(name) ? m.get(name) : "")])
    .filter(([, ...found]) => new Set(found).size > 1);
}

// A page that is served by the run itself: it waits for news, asks, and stops the run.

const POST = {"Content-Type": "application/json"};

async function post(what, value) {
  try {
    const body = JSON.stringify(value);
    const got = await fetch(what, {method: "POST", headers: POST, body, cache: "no-store"});
    return got.ok ? "" : await got.text() || `refused (${got.status})`;
  } catch {
    return "the run no longer responds";
  }
}

function liveControls(run, state) {
  const dot = h("span", {class: "dot-live", "aria-hidden": "true"}), word = h("span", {role: "status"});
  const stop = h("button", {type: "button", class: "stop", click: async () => {
    if (!state.sure) {
      state.sure = true;
      setTimeout(() => { state.sure = false; draw(); }, 5000);
      return draw();
    }
    state.stopping = true;
    draw();
    const problem = await post("stop", {});
    if (problem) { state.stopping = false; state.problem = problem; draw(); }
  }});
  const element = h("div", {class: "live"}, dot, word, stop);
  function draw() {
    const going = state.connected && !state.over;
    dot.classList.toggle("on", going);
    word.textContent = clean(state.problem || (state.over ? "ended"
      : !state.connected ? "no connection" : state.stopping ? "stopping and saving ..." : "live"));
    stop.hidden = !going;
    stop.disabled = state.stopping;
    stop.textContent = state.sure && !state.stopping ? "Press again to stop" : "Stop and save";
  }
  return {element, draw};
}

function askCard(run, state) {
  let problem = "";
  const said = h("p", {class: "note", role: "status"});
  const box = h("textarea", {rows: 2, maxlength: 4000, "aria-label": "question",
    placeholder: "Ask the current adapter", keydown: e => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); }
    }});
  const button = h("button", {type: "button", click: () => send()}, "Ask");
  const list = h("div"), form = h("div", {class: "ask"}, box, button);
  async function send() {
    if (!box.value.trim()) return;
    button.disabled = true;
    problem = await post("ask", {prompt: box.value});
    button.disabled = false;
    if (!problem) box.value = "";
    draw();
  }
  const element = card("Questions", form, said, list);
  function draw() {
    form.hidden = !(state && state.connected && !state.over);
    element.hidden = form.hidden && !run.questions.length;
    said.textContent = form.hidden ? "" : clean(problem
      || "Questions are answered between iterations. Training pauses meanwhile, but its results "
      + "stay bit-identical.");
    list.replaceChildren(...[...run.questions].reverse().map(q => h("div", {class: "sample"},
      h("p", {class: "prompt text"}, q.prompt),
      h("p", {class: "text answer"}, q.answer || h("span", {class: "none"},
        q.done ? "(nothing)" : "waiting for the end of an iteration ...")),
      h("p", {class: "note"}, q.done ? WHEN(q.iter) : ""))));
  }
  return {element, draw};
}

// Wait for news and draw them, at most once a second, and not while the page is hidden.
async function follow(run, state, draw) {
  let version = DATA.live.version, failed = 0;
  const pause = ms => new Promise(done => setTimeout(done, ms));
  const seen = () => new Promise(done => {
    if (!document.hidden) return done();
    document.addEventListener("visibilitychange", done, {once: true});
  });
  while (!state.over && failed < 20) {
    try {
      const got = await fetch(`data?after=${version}`, {cache: "no-store"});
      if (!got.ok) throw new Error(got.status);
      const news = await got.json();
      if (news.run) Object.assign(run, news.run);
      news.events.forEach(row => add(run, row));
      version = news.version;
      state.over = news.over;
      state.connected = true;
      failed = 0;
    } catch {
      state.connected = false;
      failed += 1;
      await pause(2000);
    }
    draw();
    if (!state.over) await pause(1000);
    await seen();
  }
}

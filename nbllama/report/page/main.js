// The page, from the data that lie in it.

const DATA = JSON.parse(document.getElementById("data").textContent);

function single(run, live) {
  const state = live ? {connected: true, over: live.over, stopping: false, sure: false} : null;
  const controls = state ? liveControls(run, state) : null;
  const isLive = () => Boolean(state) && !state.over;
  const cards = [headCard(run, controls && controls.element), tileCard(run, isLive), verdictCard(run), lossCard(run),
    preferenceCards(run), rewardCards(run), otherCards(run), heatCard(run), tokenCard(run), askCard(run, state), sampleCard(run),
    dataCard(run), forecastCard(run), evaluationCard(run), commandCard(run), optionCard(run),
    footer([run])];
  return {cards: controls ? [...cards, {element: null, draw: controls.draw}] : cards, state};
}

const page = DATA.runs.length > 1 ? {cards: comparison(DATA.runs), state: null}
  : single(DATA.runs[0], DATA.live);
const drawAll = () => page.cards.forEach(c => c.draw());
document.getElementById("page").replaceChildren(
  ...page.cards.map(c => c.element).filter(Boolean));
drawAll();

let width = document.documentElement.clientWidth, waiting = false;
addEventListener("resize", () => {
  if (waiting || width === document.documentElement.clientWidth) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    width = document.documentElement.clientWidth;
    drawAll();
  });
});

if (page.state) follow(DATA.runs[0], page.state, drawAll);

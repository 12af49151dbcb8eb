// The page: which exam, which model, what its map is asked about; keys and buttons.
import { Kept, framed, json, wasAborted } from "/static/api.js";
import { List, fill } from "/static/list.js";
import { Near, known, reports, scores, table } from "/static/panel.js";
import { Film, heats } from "/static/picture.js";
import { Stage, element, words } from "/static/stage.js";

const WAIT = 300, $ = (id) => document.getElementById(id);
const films = new Kept(24), maps = new Kept(24);
let about, list, stage, near, exam = null, opening = 0, asking = new AbortController();
const asked = { label: "", phrase: "", shown: 0 }; // shown: number of a model, or -1 for both
const ways = []; // of each model: {method, stage}

const KEYS = [
  ["j, →", "next exam", () => list.step(1), ["j", "ArrowRight"]],
  ["k, ←", "previous exam", () => list.step(-1), ["k", "ArrowLeft"]],
  ["/", "write a phrase", () => $("phrase").focus(), ["/"]],
  ["l", "next label", () => next("label"), ["l"]],
  ["m", "next method of the map", () => next("method"), ["m"]],
  ["s", "next stage", () => next("stage"), ["s"]],
  ["h", "map", () => toggle("heat"), ["h"]],
  ["b", "true boxes", () => toggle("boxes"), ["b"]],
  ["d", "detections", () => toggle("found"), ["d"]],
  ["n", "names and scores", () => toggle("names"), ["n"]],
  ["i", "invert", () => toggle("invert"), ["i"]],
  ["[ ]", "less, more opacity", (event) => opacity(event.key === "[" ? -0.1 : 0.1), ["[", "]"]],
  ["a", "window of the tissue", () => tissue(), ["a"]],
  ["w", "drag: window or move", () => tool(), ["w"]],
  ["+ −", "zoom", (event) => stage.magnify(event.key === "-" ? 0.8 : 1.25), ["+", "=", "-"]],
  ["1 … 9", "one view alone", (event) => alone(Number(event.key) - 1), [..."123456789"]],
  ["0, Esc", "all views", () => stage.alone !== null && stage.only(null), ["0", "Escape"]],
  ["r", "as at first", () => reset(), ["r"]],
  ["x", "nearest to the view", () => nearest(), ["x"]],
  ["c", "other model, or both", () => side(), ["c"]],
  ["e", "list of exams", () => drawer(), ["e"]],
  ["p", "panel", () => document.body.classList.toggle("without-panel"), ["p"]],
  ["?", "this list", () => $("keys").showModal(), ["?"]],
];

const called = (image) => [image.laterality, image.view].filter(Boolean).join(" ") || "this view";
const shown = () => (asked.shown < 0 ? about.sides.map((_, at) => at) : [asked.shown]);
const model = (at) => about.sides[at].model;
const first = () => shown().find((at) => model(at)) ?? 0;

async function start() {
  about = await json("/api/about");
  document.title = `${about.dataset} · exams`;
  $("dataset").textContent = about.dataset;
  if (!about.real) $("dataset").append(" ", element("span", "badge", "phantoms"));
  for (const { model: one } of about.sides) ways.push({ method: one?.method || "", stage: one?.stage || "" });
  asked.label = about.sides.map((one) => one.model?.labels[0]).find(Boolean) || "";
  asked.shown = about.sides.length > 1 ? -1 : 0;
  stage = new Stage($("stage"), chosen);
  list = new List(about, (id) => open(id));
  list.onchange = position;
  near = new Near((id) => open(id));
  buildTools();
  buildSides();
  buildAsk();
  buildKeys();
  const wanted = new URLSearchParams(location.hash.slice(1)).get("exam");
  if (wanted) list.current = wanted;
  await list.reload(true);
  const begin = wanted || (list.count ? (await list.at(0)).id : "");
  if (begin) await open(begin).catch(() => list.count && list.at(0).then((one) => open(one.id)));
  else tell("no exam fits the filters");
}

async function open(id) {
  const turn = (opening += 1);
  document.body.dataset.state = "loading";
  const found = await json(`/api/exams/${id}`);
  if (turn !== opening) return; // another was asked for meanwhile
  exam = found;
  history.replaceState(null, "", `#exam=${id}`);
  document.body.classList.remove("with-list");
  near.forget();
  stage.chosen = 0;
  stage.alone = null;
  stage.centre();
  list.mark(id);
  hang();
  known($("known"), exam, about);
  reports($("reports"), exam);
  $("others-section").hidden = !exam.others.length;
  $("others").replaceChildren(...exam.others.map((one, at) => {
    const button = element("button", "", one.day ? `day ${one.day}` : `exam ${at + 1}`);
    button.addEventListener("click", () => open(one.id));
    return button;
  }));
  const loaded = await Promise.all(exam.images.map(film));
  if (exam !== found) return;
  stage.films = loaded;
  stage.draw();
  document.body.dataset.state = "shown";
  chosen();
  await ask();
  if (exam !== found) return;
  score(found).catch((error) => tell(error.message));
  ahead().catch(() => {});
}

const film = (image) => films.get(image.id, async () => new Film(await framed(`/api/images/${image.id}/pixels`)));

// The next exam's images, while a person looks at this one.
async function ahead() {
  if (list.number === null || list.number + 1 >= list.count) return;
  const { id } = await list.at(list.number + 1);
  const { images } = await json(`/api/exams/${id}`);
  for (const image of images.slice(0, 8)) await film(image);
}

function hang() {
  const names = about.sides.map((one) => one.name);
  const { films: before } = stage;
  stage.hang(exam, shown(), names);
  stage.films = before || [];
  tellScores();
}

// Maps, similarities and detections of the exam, for each model that is shown.
async function ask() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking, now = exam, said = {};
  stage.heats = {};
  stage.found = {};
  $("said").hidden = true;
  buildMethods();
  for (const button of $("targets").children) button.setAttribute("aria-pressed", !asked.phrase && button.dataset.label === asked.label);
  $("near-phrase").hidden = !asked.phrase;
  label();
  stage.draw();
  const wanted = shown().filter((at) => model(at) && (asked.phrase ? model(at).phrases : true));
  if (!wanted.length) return tell(asked.phrase ? "no model here reads phrases" : "");
  tell("computing …");
  document.body.dataset.map = "loading";
  try {
    for (const at of wanted) {
      if (model(at).detects) {
        stage.found[at] = (await json(`/api/exams/${now.id}/found`, { side: at }, signal)).views;
        stage.draw();
      }
      if (asked.phrase) said[at] = (await json(`/api/exams/${now.id}/said`, { side: at, phrase: asked.phrase }, signal)).views;
      if (signal.aborted) return;
      if (asked.phrase) similar(said);
      if (!ways[at].method || !(asked.phrase || model(at).labels.includes(asked.label))) continue;
      const query = { side: at, ...ways[at], ...(asked.phrase ? { phrase: asked.phrase } : { label: asked.label }) };
      const made = await mapsOf(now, query, signal);
      if (signal.aborted) return;
      stage.heats[at] = made;
      stage.draw();
    }
    const [without] = wanted.filter((at) => !ways[at].method);
    tell(without === undefined ? "" : `no map: ${Object.values(model(without).refused)[0]}`);
    document.body.dataset.map = "shown";
  } catch (error) {
    if (wasAborted(error) || signal.aborted) return;
    tell(error.message);
    document.body.dataset.map = "failed";
  }
}

// Maps of an exam, kept. One that is on its way may belong to a question that was left: then it is asked for anew.
async function mapsOf(exam, query, signal) {
  const get = () => maps.get(`${exam.id} ${JSON.stringify(query)}`, async () => heats(await framed(`/api/exams/${exam.id}/map`, query, signal), about.colours));
  try {
    return await get();
  } catch (error) {
    if (!wasAborted(error) || signal.aborted) throw error;
    return get();
  }
}

function similar(said) {
  const rows = exam.images.map((image, place) => [
    called(image),
    ...Object.values(said).map((views) => {
      const { cosine, above } = views[place];
      return `${cosine.toFixed(3)}${above === null ? "" : ` · above ${Math.round(100 * above)} %`}`;
    }),
  ]);
  const heads = Object.keys(said).map((at) => (about.sides.length > 1 ? about.sides[at].name : "cosine to the phrase"));
  $("said").replaceChildren(...table(["", ...heads], rows).children);
  $("said").hidden = false;
  for (const cell of stage.cells) {
    const found = said[cell.side]?.[cell.place];
    if (found) write(cell, `“${asked.phrase}” ${found.cosine.toFixed(3)}`);
  }
}

// The words in the corner of each view: its name, and its score of the label.
function label() {
  for (const cell of stage.cells) {
    const found = exam.scores[cell.side]?.[asked.label]?.views[cell.place];
    write(cell, !asked.phrase && found !== null && found !== undefined ? `${words(asked.label)} ${found.toFixed(3)}` : "");
  }
}

function write(cell, text) {
  cell.words.replaceChildren(element("b", "", cell.name), " ", element("span", "", text));
}

function chosen() {
  const { low, high } = stage.look, view = exam.images[stage.chosen], most = view.bits === 16 ? 65535 : 255;
  $("window").textContent = `${Math.round(low * most)} – ${Math.round(high * most)}`;
  $("near-image").textContent = `to ${called(view)}`;
}

function position() {
  const { number, count } = list, text = number === null ? "not in the list" : `${(number + 1).toLocaleString("en")} of ${count.toLocaleString("en")}`;
  $("position").textContent = count ? text : "none";
  $("previous").disabled = !number;
  $("next").disabled = number !== null && number + 1 >= count;
}

function tell(text) { $("state").textContent = text; }

function toggle(name) {
  stage.look[name] = !stage.look[name];
  for (const button of document.querySelectorAll(`[data-toggle=${name}]`)) button.setAttribute("aria-pressed", stage.look[name]);
  stage.draw();
}

function opacity(by) {
  stage.look.opacity = Math.min(Math.max(stage.look.opacity + by, 0), 1);
  $("opacity").value = 100 * stage.look.opacity;
  stage.draw();
}

function tissue() {
  const film = stage.films[stage.chosen];
  if (!film) return;
  Object.assign(stage.look, film.tissue());
  stage.draw();
  chosen();
}

function tool() {
  stage.tool = stage.tool === "pan" ? "window" : "pan";
  $("stage").dataset.tool = stage.tool;
  $("tool").setAttribute("aria-pressed", stage.tool === "window");
}

function alone(place) {
  if (place < exam.images.length) stage.only(order()[place]);
}

// Scores of an exam that has none stored.
async function score(now) {
  for (const at of shown()) {
    const known = Object.values(now.scores[at]).some((one) => one.views.some((value) => value !== null));
    if (known || !model(at)?.scores) continue;
    now.scores[at] = (await json(`/api/exams/${now.id}/scores`, { side: at })).scores;
    if (now === exam) tellScores();
  }
}

function tellScores() {
  scores($("scores"), exam, about, exam.images.map(called));
  label();
}

const order = () => exam.rows.flatMap((row) => [row.left, row.right]).filter(Boolean).map((hung) => hung.place);

function reset() {
  Object.assign(stage.look, { low: 0, high: 1, invert: false });
  for (const button of document.querySelectorAll("[data-toggle=invert]")) button.setAttribute("aria-pressed", false);
  stage.alone = null;
  stage.centre();
  stage.show();
  stage.draw();
  chosen();
}

function next(what) {
  const at = first(), one = model(at);
  if (!one) return;
  const after = (values, value) => values[(values.indexOf(value) + 1) % values.length];
  if (what === "label" && one.labels.length) {
    asked.label = after(one.labels, asked.phrase ? "" : asked.label);
    asked.phrase = $("phrase").value = "";
  } else if (what === "method" && ways[at].method) {
    way(at, after(Object.keys(one.methods), ways[at].method));
  } else if (what === "stage" && one.methods[ways[at].method]?.stages.length) {
    ways[at].stage = after(one.methods[ways[at].method].stages, ways[at].stage);
  }
  ask();
}

function way(at, method) {
  const { stages, stage: own } = model(at).methods[method];
  ways[at] = { method, stage: stages.includes(ways[at].stage) ? ways[at].stage : own };
}

function side() {
  if (about.sides.length < 2) return;
  asked.shown = asked.shown + 1 >= about.sides.length ? -1 : asked.shown + 1;
  for (const button of $("sides").children) button.setAttribute("aria-pressed", Number(button.dataset.side) === asked.shown);
  hang();
  ask().then(() => score(exam)).catch((error) => tell(error.message));
}

function drawer() { document.body.classList.toggle(matchMedia("(max-width: 900px)").matches ? "with-list" : "without-list"); }

function nearest(phrase = "") {
  const at = first();
  if (!model(at)) return;
  const image = exam.images[stage.chosen], name = called(image);
  near.ask({ side: at, ...(phrase ? { phrase } : { image: image.id }) }, phrase ? `“${phrase}”` : name).then(fresh);
}

// Scores all images, where none are stored, and says how far it is.
async function scoreAll() {
  const said = $("score-all").querySelector("span");
  for (;;) {
    const { images, of_images: all, error } = await json("/api/survey", { side: 0, start: 1 });
    said.textContent = error || `${images.toLocaleString("en")} of ${all.toLocaleString("en")}`;
    if (error || images === all) break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  await fresh();
}

// What the survey has scored meanwhile.
async function fresh() {
  const now = await json("/api/about");
  if (Object.keys(now.sides[0].scored).length === Object.keys(about.sides[0].scored).length) return;
  about = list.about = now;
  list.labels();
  if (exam) {
    exam.scores = (await json(`/api/exams/${exam.id}`)).scores;
    tellScores();
    score(exam);
  }
  list.reload(true);
}

function buildTools() {
  const bar = $("tools");
  const button = (text, title, act, more = {}) => {
    const made = element("button", "", text);
    made.title = title;
    Object.entries(more).forEach(([name, value]) => made.setAttribute(name, value));
    made.addEventListener("click", act);
    bar.append(made);
    return made;
  };
  button("window", "drag changes the window (w); a drag with the right button always does", tool, { id: "tool", "aria-pressed": "false" });
  button("auto", "window of the tissue (a)", tissue);
  button("invert", "i", () => toggle("invert"), { "data-toggle": "invert", "aria-pressed": "false" });
  const models = about.sides.filter((one) => one.model);
  if (models.some(({ model: one }) => one.method)) button("map", "h", () => toggle("heat"), { "data-toggle": "heat", "aria-pressed": "true" });
  if (models.some(({ model: one }) => one.method)) {
    const slider = element("input");
    Object.assign(slider, { type: "range", id: "opacity", min: 0, max: 100, value: 100 * stage.look.opacity, title: "opacity of the map ([ and ])" });
    slider.setAttribute("aria-label", "opacity of the map");
    slider.addEventListener("input", () => opacity(slider.value / 100 - stage.look.opacity));
    bar.append(slider);
  }
  button("boxes", "true boxes (b)", () => toggle("boxes"), { "data-toggle": "boxes", "aria-pressed": "true" });
  if (models.some(({ model: one }) => one.detects)) {
    button("detections", "d", () => toggle("found"), { "data-toggle": "found", "aria-pressed": "true" });
    const slider = element("input"), said = element("span", "soft");
    Object.assign(slider, { type: "range", min: 0, max: 100, value: 100 * stage.look.least, title: "least score of a detection that is shown" });
    slider.setAttribute("aria-label", slider.title);
    said.id = "least-shown";
    const tell = () => { said.textContent = `≥ ${stage.look.least.toFixed(2)}`; };
    slider.addEventListener("input", () => { stage.look.least = slider.value / 100; tell(); stage.draw(); });
    tell();
    bar.append(slider, said);
  }
  button("names", "names and scores (n)", () => toggle("names"), { "data-toggle": "names", "aria-pressed": "true" });
  button("reset", "as at first (r)", reset);
  const shownWindow = element("span", "soft");
  shownWindow.id = "window";
  shownWindow.title = "grey values from black to white";
  bar.append(shownWindow);
}

function buildSides() {
  if (about.sides.length < 2) {
    const one = model(0);
    $("sides").append(element("span", "soft", one ? `${one.name} · ${one.kind}, step ${one.step}` : about.sides[0].name));
    return;
  }
  const names = [["both", -1], ...about.sides.map((one, at) => [one.name, at])];
  for (const [name, at] of names) {
    const button = element("button", "", name);
    button.dataset.side = at;
    button.setAttribute("aria-pressed", at === asked.shown);
    button.addEventListener("click", () => { asked.shown = at - 1 < -1 ? about.sides.length - 1 : at - 1; side(); });
    $("sides").append(button);
  }
}

function buildAsk() {
  const labels = [...new Set(about.sides.flatMap((one) => one.model?.labels || []))];
  for (const name of labels) {
    const button = element("button", "", words(name));
    button.dataset.label = name;
    button.addEventListener("click", () => { asked.label = name; asked.phrase = $("phrase").value = ""; ask(); });
    $("targets").append(button);
  }
  const models = about.sides.map((one) => one.model).filter(Boolean), reads = models.some((one) => one.phrases);
  $("phrase-form").hidden = !reads;
  $("no-phrase").hidden = reads;
  $("no-phrase").textContent = models[0]?.no_phrase || "there are predictions alone: maps and phrases need a model";
  $("near-section").hidden = !models.length;
  let timer = 0;
  const read = () => { clearTimeout(timer); const phrase = $("phrase").value.trim(); if (phrase !== asked.phrase) { asked.phrase = phrase; ask(); } };
  $("phrase").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(read, WAIT); });
  $("phrase-form").addEventListener("submit", (event) => { event.preventDefault(); read(); $("phrase").blur(); });
  $("near-image").addEventListener("click", () => nearest());
  $("near-phrase").addEventListener("click", () => nearest(asked.phrase));
}

function buildMethods() {
  const root = $("methods");
  root.replaceChildren();
  for (const at of shown()) {
    const one = model(at);
    if (!one?.method) continue;
    const row = element("div", "pair");
    const select = (text, pairs, value, act) => {
      const label = element("label", "", text), made = element("select");
      fill(made, pairs);
      made.value = value;
      made.addEventListener("change", () => { act(made.value); ask(); });
      label.append(" ", made);
      row.append(label);
    };
    const name = about.sides.length > 1 ? `method of ${one.name}` : "method";
    select(name, Object.entries(one.methods).map(([key, each]) => [key, each.title]), ways[at].method, (value) => way(at, value));
    const { stages } = one.methods[ways[at].method];
    if (stages.length > 1) select("stage", stages.map((key) => [key, key]), ways[at].stage, (value) => { ways[at].stage = value; });
    root.append(row);
    row.title = Object.entries(one.refused).map(([key, why]) => `${key}: ${why}`).join("\n");
  }
}

function buildKeys() {
  for (const [keys, text] of KEYS) $("keys").querySelector("dl").append(element("dt", "", keys), element("dd", "", text));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const typing = event.target.matches("input:not([type=range]), select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const found = KEYS.find(([, , , keys]) => keys.includes(event.key));
    if (!found || !exam) return;
    event.preventDefault();
    found[2](event);
  });
  $("previous").addEventListener("click", () => list.step(-1));
  $("next").addEventListener("click", () => list.step(1));
  $("open-list").addEventListener("click", drawer);
  $("score-all").querySelector("button").addEventListener("click", (event) => { event.target.disabled = true; scoreAll(); });
  $("help").addEventListener("click", () => $("keys").showModal());
}

start().catch((error) => { document.body.dataset.state = "failed"; tell(error.message); });

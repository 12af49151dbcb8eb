// The list of exams: filters, order, and rows that are fetched as they come into sight.
import { json } from "/static/api.js";
import { isFinding } from "/static/panel.js";
import { element, words } from "/static/stage.js";

const ROW = 54, PART = 100, WAIT = 250;

export class List {
  // `open(id)` is called for the exam that a person chose.
  constructor(about, open) {
    this.about = about;
    this.open = open;
    this.scroll = document.getElementById("scroll");
    this.rows = document.getElementById("exams");
    this.count = 0;
    this.parts = new Map();
    this.current = "";
    this.number = null;
    this.build();
    this.scroll.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  build() {
    const { about } = this, form = document.getElementById("filters");
    fill(document.getElementById("order"), about.orders.map((name) => [name, name]));
    this.labels();
    const slices = about.slices.map((one, number) => [
      [String(number), `${one.title} (${one.images})`],
      [`${number} wrong`, `${one.title}, decided wrongly (${one.wrong})`],
    ]);
    fill(document.getElementById("slice"), [["", "all exams"], ...slices.flat()]);
    document.getElementById("slice-label").hidden = !slices.length;
    const facets = document.getElementById("facets");
    for (const [name, counts] of Object.entries(about.facets)) {
      const select = element("select"), label = element("label", "", words(name));
      select.name = about.columns.includes(name) ? name : `label.${name}`;
      fill(select, [["", "any"], ...Object.entries(counts).map(([value, count]) => [value, `${value} (${count})`])]);
      label.append(" ", select);
      facets.append(label);
    }
    let timer = 0;
    form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.reload(), WAIT); });
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  // The labels that there are scores of, which grow while they are computed.
  labels() {
    const { sides } = this.about, by = document.getElementById("by"), now = by.value;
    const known = sides.flatMap((side, at) => Object.keys(side.scored).map((name) => [`${at} ${name}`, sides.length > 1 ? `${words(name)}, ${side.name}` : words(name)]));
    fill(by, known.length ? known : [["", "none yet"]]);
    by.disabled = !known.length;
    document.getElementById("score-all").hidden = known.length > 0 || !sides[0]?.model?.scores;
    if (known.some(([value]) => value === now)) by.value = now;
  }

  asked() {
    const value = (id) => document.getElementById(id).value.trim(), [slice, wrong] = value("slice").split(" ");
    const chosen = [...document.querySelectorAll("#facets select")].map((select) => [select.name, select.value]);
    const [side, ...label] = value("by").split(" ");
    const asked = { order: value("order"), side, by: label.join(" "), low: value("low"), high: value("high"), text: value("text"), slice, slice_wrong: wrong };
    return { ...asked, ...Object.fromEntries(chosen) };
  }

  // Asks anew; goes to the top, or stays at the exam that is shown where it is still listed.
  async reload(stay = false) {
    const query = this.asked(), turn = (this.turn = (this.turn || 0) + 1);
    const first = await json("/api/exams", { ...query, start: 0, count: PART, find: this.current });
    if (turn !== this.turn) return;
    this.query = query;
    this.parts = new Map([[0, Promise.resolve(first.exams)]]);
    this.count = first.count;
    this.number = first.found;
    const active = Object.entries(query).filter(([name, value]) => value && !["order", "side", "by", "slice", "slice_wrong"].includes(name)).length;
    document.getElementById("active").textContent = active ? `(${active})` : "";
    const all = this.about.exams;
    document.getElementById("count").textContent = first.count === all ? `${all.toLocaleString("en")} exams` : `${first.count.toLocaleString("en")} of ${all.toLocaleString("en")} exams`;
    this.rows.style.height = `${this.count * ROW}px`;
    if (stay && this.number !== null) this.bring(this.number); else this.scroll.scrollTop = 0;
    this.draw();
    this.onchange?.();
  }

  part(number) {
    if (!this.parts.has(number)) {
      const wanted = json("/api/exams", { ...this.query, start: number * PART, count: PART }).then((found) => found.exams);
      wanted.catch(() => this.parts.delete(number));
      this.parts.set(number, wanted);
    }
    return this.parts.get(number);
  }

  async at(number) {
    return (await this.part(Math.floor(number / PART)))[number % PART];
  }

  async draw() {
    const turn = (this.drawing = (this.drawing || 0) + 1);
    const first = Math.max(Math.floor(this.scroll.scrollTop / ROW) - 4, 0);
    const last = Math.min(first + Math.ceil(this.scroll.clientHeight / ROW) + 8, this.count);
    const wanted = await Promise.all(Array.from({ length: Math.max(last - first, 0) }, (_, i) => this.at(first + i)));
    if (turn !== this.drawing) return;
    this.rows.replaceChildren(...wanted.map((exam, i) => exam && this.row(exam, first + i)).filter(Boolean));
  }

  row(exam, number) {
    const row = element("li"), button = element("button"), top = element("span", "line"), below = element("span", "line soft");
    row.style.top = `${number * ROW}px`;
    row.style.height = `${ROW}px`;
    button.setAttribute("aria-current", exam.id === this.current ? "true" : "false");
    button.dataset.exam = exam.id;
    const labels = Object.entries(exam.labels).map(([name, values]) => [name, values.split(", ")[0]]);
    const there = labels.filter(([name, value]) => value === "1" && isFinding(this.about, name)).map(([name]) => words(name));
    const others = labels.filter(([name]) => !isFinding(this.about, name)).map(([name, value]) => `${words(name)} ${value}`);
    top.append(element("b", "", String(number + 1)), element("span", "what", there.join(", ") || "–"));
    const [[label, score] = []] = Object.entries(exam.scores);
    if (label && score.score !== null) {
      const shown = element("span", `score ${score.truth === 1 ? "is" : score.truth === 0 ? "is-not" : ""}`, score.score.toFixed(3));
      shown.title = `${label}${score.truth === null ? "" : score.truth ? ": there" : ": not there"}${score.wrong === null ? "" : `; wrong ${score.wrong.toFixed(2)}`}`;
      top.append(shown);
    }
    const wrong = score?.wrong ?? null;
    below.append(element("span", "what", [exam.split, exam.vendor, ...others].filter((part) => part && part !== "unknown").join(" · ")));
    if (wrong !== null && wrong >= 0.5) below.append(element("span", "wrong", `wrong ${wrong.toFixed(2)}`));
    button.append(top, below);
    button.addEventListener("click", () => { this.number = number; this.open(exam.id); });
    row.append(button);
    return row;
  }

  bring(number) {
    const { scroll } = this, top = number * ROW;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    else if (top + ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + ROW - scroll.clientHeight;
  }

  // Marks the exam that is shown; its number is that of the row or step that led to it, or is asked for.
  async mark(id) {
    this.current = id;
    const { number } = this, known = number !== null && number < this.count && (await this.at(number))?.id === id;
    if (!known && this.query) {
      const { found } = await json("/api/exams", { ...this.query, start: 0, count: 1, find: id });
      if (this.current === id) this.number = found;
    }
    if (this.current !== id) return;
    if (this.number !== null) this.bring(this.number);
    this.draw();
    this.onchange?.();
  }

  async step(by) {
    const number = this.number === null ? 0 : this.number + by;
    if (number < 0 || number >= this.count) return;
    this.number = number; // at once: the next key may come before the exam
    const exam = await this.at(number);
    if (this.number === number) this.open(exam.id);
  }
}

export function fill(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  }));
}

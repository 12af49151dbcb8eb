// What is said of an exam: scores, labels, reports, nearest exams.
import { json } from "/static/api.js";
import { element, words } from "/static/stage.js";

const number = (value) => (value === null || value === undefined ? "" : value.toFixed(3));

export function table(heads, rows) {
  const made = element("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  for (const text of heads) head.append(element("th", "", text));
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell, place) => row.append(cell instanceof Node ? cell : element(place ? "td" : "th", "", cell)));
  }
  return made;
}

export function scores(root, exam, about, names) {
  root.replaceChildren();
  about.sides.forEach((side, at) => {
    const found = Object.entries(exam.scores[at]).filter(([, score]) => score.views.some((value) => value !== null));
    if (about.sides.length > 1) root.append(element("h3", "", side.name));
    if (!found.length) {
      root.append(element("p", "soft", side.model?.scores ? "computing …" : "none of this exam"));
      return;
    }
    const rows = found.map(([label, score]) => {
      const name = element("th", score.truth === 1 ? "is" : score.truth === 0 ? "is-not" : "", words(label));
      name.title = score.truth === null ? "truth unknown" : score.truth ? "there" : "not there";
      return [name, number(score.score), ...score.views.map(number)];
    });
    const wide = element("div", "wide");
    wide.append(table(["", "exam", ...names], rows));
    root.append(wide);
    const sources = [...new Set(found.map(([label, score]) => (score.now ? "this page, now" : side.scored[label])))].join(", ");
    const meaning = side.model?.meaning ? `${side.model.meaning}. ` : "";
    root.append(element("p", "soft", `${meaning}The exam has the highest of its views.${sources ? ` From ${sources}.` : ""}`));
  });
}

// Whether a label says yes or no.
export const isFinding = (about, name) => Object.keys(about.facets[name] || { more: 1 }).every((value) => value === "0" || value === "1");

// A label's value; where the sides differ, that of each.
function bySide(exam, about, name) {
  const sides = {}, yesNo = (value) => (!isFinding(about, name) ? value : value === "1" ? "yes" : "no");
  for (const { laterality, labels } of exam.images) {
    if (labels[name]) (sides[laterality || "?"] ||= new Set()).add(yesNo(labels[name]));
  }
  const said = Object.entries(sides).sort().reverse().map(([side, values]) => [side, [...values].join(", ")]);
  const same = new Set(said.map(([, text]) => text)).size === 1;
  return same ? said[0][1] : said.map(([side, text]) => `${side} ${text}`).join(" · ");
}

export function known(root, exam, about) {
  root.replaceChildren();
  const said = [["split", exam.split], ["vendor", exam.vendor], ...Object.keys(exam.all_labels).map((name) => [name, bySide(exam, about, name)])];
  for (const [name, value] of said) {
    if (value) root.append(element("dt", "", words(name)), element("dd", "", value));
  }
  const flags = [...new Set(exam.images.flatMap((image) => image.flags))];
  if (flags.length) root.append(element("dt", "", "flags"), element("dd", "", flags.map(words).join(", ")));
}

export function reports(root, exam) {
  root.replaceChildren();
  if (!exam.reports.length) root.append(element("p", "soft", "none is stored"));
  for (const one of exam.reports) {
    root.append(element("h3", "", [one.section, one.of.join(", ")].filter(Boolean).join(" · ")), element("p", "report", one.text));
  }
}

// Asks for the nearest again until the survey is done; `open(id)` shows an exam.
export class Near {
  constructor(open) {
    this.open = open;
    this.root = document.getElementById("near");
    this.progress = document.getElementById("progress");
    this.state = document.getElementById("survey");
    this.turn = 0;
  }

  forget() {
    this.turn += 1;
    this.root.replaceChildren();
    this.progress.hidden = true;
    this.state.textContent = "";
  }

  async ask(parameters, what) {
    const turn = (this.turn += 1);
    this.state.textContent = "looking …";
    for (;;) {
      let found;
      try {
        found = await json("/api/near", parameters);
      } catch (error) {
        if (turn === this.turn) this.state.textContent = error.message;
        return;
      }
      if (turn !== this.turn) return;
      const done = this.tell(found.survey, what);
      this.draw(found);
      if (done) return;
      await new Promise((resolve) => setTimeout(resolve, 1500));
      if (turn !== this.turn) return;
    }
  }

  tell(survey, what) {
    const all = survey.of_images + survey.of_reports, now = survey.images + survey.reports;
    this.progress.max = all || 1;
    this.progress.value = now;
    this.progress.hidden = now >= all || Boolean(survey.error);
    const count = (value) => value.toLocaleString("en");
    const among = `among ${count(survey.images)} of ${count(survey.of_images)} images` +
      (survey.of_reports ? ` and ${count(survey.reports)} of ${count(survey.of_reports)} texts of reports` : "");
    this.state.textContent = survey.error ? `the survey ended early: ${survey.error}` : `nearest to ${what}, ${among}`;
    return now >= all || survey.error;
  }

  draw(found) {
    const exams = element("div", "near-exams");
    for (const one of found.exams) {
      const button = element("button"), picture = element("img");
      picture.src = `/api/images/${one.image}/thumbnail`;
      picture.alt = one.view;
      picture.loading = "lazy";
      const there = Object.entries(one.labels).filter(([, value]) => value.split(", ")[0] === "1").map(([name]) => words(name)).join(", ");
      button.append(picture, element("span", "", `${one.view} ${one.cosine.toFixed(3)}`), element("span", "soft", there));
      button.title = one.text;
      button.addEventListener("click", () => this.open(one.exam));
      exams.append(button);
    }
    this.root.replaceChildren(exams);
    if (!found.reports.length) return;
    this.root.append(element("h3", "", "reports"));
    for (const one of found.reports) {
      const button = element("button", "near-report");
      const many = one.count > 1 ? ` · in ${one.count} exams` : "";
      button.append(element("span", "soft", `${one.cosine.toFixed(3)}${many}`), element("span", "", one.text));
      button.addEventListener("click", () => this.open(one.exams[0]));
      this.root.append(button);
    }
  }
}

// The views as they hang: drawing, zoom, pan, window. All views move together, the left ones mirrored to the right ones.

const FOUND = "#e69f00", TRUE = "#f5f7fa", LARGEST = 40;

export class Stage {
  // `changed()` is called when a view is chosen or the window has been dragged.
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.cells = [];
    this.look = { low: 0, high: 1, invert: false, opacity: 0.6, heat: true, boxes: true, found: true, least: 0.25, names: true };
    this.tool = "pan";
    this.chosen = 0;
    this.alone = null;
    this.pointers = new Map();
    this.centre();
    new ResizeObserver(() => this.draw()).observe(root);
  }

  centre() { this.zoom = 1; this.x = 0; this.y = 0; }

  // Makes a place for each view of an exam, once for each of `sides`, numbers of models.
  hang(exam, sides, names) {
    this.exam = exam;
    this.films = [];
    this.heats = {};
    this.found = {};
    this.cells = [];
    this.root.replaceChildren();
    this.root.dataset.sides = sides.length;
    for (const side of sides) {
      const group = element("div", "hanging");
      group.style.setProperty("--rows", exam.rows.length);
      if (sides.length > 1) group.append(element("p", "side", names[side]));
      for (const row of exam.rows) for (const where of ["left", "right"]) group.append(this.place(row, where, side));
      this.root.append(group);
    }
    this.show();
    this.draw();
  }

  place(row, where, side) {
    const hung = row[where], box = element("div", `cell ${where}`);
    if (!hung) {
      box.classList.add("empty");
      box.append(element("p", "soft", row.view ? `${where === "left" ? "R" : "L"} ${row.view} not there` : ""));
      return box;
    }
    const view = this.exam.images[hung.place], canvas = element("canvas"), words = element("p", "words");
    const name = [view.laterality, view.view].filter(Boolean).join(" ") || "view unknown";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
    box.dataset.view = name;
    box.dataset.mirrored = hung.mirrored;
    box.append(canvas, words);
    const cell = { box, canvas, words, view, name, side, place: hung.place, mirrored: hung.mirrored, where };
    cell.sign = where === "left" ? -1 : 1;
    this.cells.push(cell);
    this.listen(cell);
    return box;
  }

  // Where a cell's image lies: scale and place of its left upper corner, in pixels of the screen.
  lie(cell) {
    const { width, height } = cell.canvas.getBoundingClientRect(), tall = cell.view.height * cell.view.tall;
    const fit = Math.min(width / cell.view.width, height / tall), scale = fit * this.zoom;
    const middle = this.alone !== null || !cell.view.laterality;
    const at = middle ? width / 2 : cell.where === "left" ? width : 0;
    const of = middle ? cell.view.width / 2 : cell.where === "left" ? cell.view.width : 0;
    return { width, height, tall, scale, at, of, left: at - of * scale + cell.sign * this.x, top: (height - tall * scale) / 2 + this.y };
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      for (const cell of this.cells) this.paint(cell);
    });
  }

  paint(cell) {
    const ratio = window.devicePixelRatio || 1, lie = this.lie(cell), { canvas } = cell, look = this.look;
    if (!lie.width || !lie.height) return;
    const size = [Math.round(lie.width * ratio), Math.round(lie.height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d"), film = this.films[cell.place];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, lie.width, lie.height);
    if (!film) return;
    const across = cell.view.width * lie.scale, down = lie.tall * lie.scale;
    context.save();
    context.translate(lie.left + (cell.mirrored ? across : 0), lie.top);
    context.scale(cell.mirrored ? -1 : 1, 1);
    context.imageSmoothingEnabled = lie.scale * ratio < 6;
    context.imageSmoothingQuality = "high";
    context.drawImage(film.under(look), 0, 0, across, down);
    const heat = this.heats[cell.side]?.[cell.place];
    if (heat && look.heat) {
      context.imageSmoothingEnabled = true;
      context.globalAlpha = look.opacity;
      context.drawImage(heat, 0, 0, across, down);
    }
    context.restore();
    if (look.boxes) for (const item of cell.view.boxes) this.box(context, cell, lie, item, TRUE, item.label);
    if (look.found) {
      for (const item of this.found[cell.side]?.[cell.place] || []) {
        if (item.score >= look.least) this.box(context, cell, lie, item, FOUND, `${item.label} ${item.score.toFixed(2)}`, [5, 3]);
      }
    }
    cell.words.hidden = !look.names;
  }

  box(context, cell, lie, item, colour, text, dash = []) {
    const [x0, y0, x1, y1] = item.box, sx = lie.scale, sy = lie.scale * cell.view.tall;
    const left = lie.left + (cell.mirrored ? cell.view.width - x1 : x0) * sx, top = lie.top + y0 * sy;
    context.setLineDash(dash);
    for (const [style, width] of [["rgba(0,0,0,.7)", 3.5], [colour, 1.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(left, top, (x1 - x0) * sx, (y1 - y0) * sy);
    }
    context.setLineDash([]);
    if (!this.look.names) return;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = cell.where === "left" ? "right" : "left";
    const at = cell.where === "left" ? left + (x1 - x0) * sx : left;
    context.lineWidth = 3;
    context.strokeStyle = "rgba(0,0,0,.8)";
    context.strokeText(words(text), at, top - 4);
    context.fillStyle = colour;
    context.fillText(words(text), at, top - 4);
  }

  // Marks the chosen view and shows one alone, or all.
  show() {
    for (const cell of this.cells) {
      cell.box.classList.toggle("chosen", cell.place === this.chosen);
      cell.box.classList.toggle("away", this.alone !== null && cell.place !== this.alone);
    }
    for (const empty of this.root.querySelectorAll(".empty")) empty.classList.toggle("away", this.alone !== null);
    this.root.classList.toggle("alone", this.alone !== null);
  }

  choose(place) {
    if (place === this.chosen) return;
    this.chosen = place;
    this.show();
    this.changed();
  }

  only(place) {
    this.alone = this.alone === place ? null : place;
    if (place !== null) this.choose(place);
    this.centre();
    this.show();
    this.draw();
  }

  // Zooms by a factor about a point of a cell; without one about the middle of the screen.
  magnify(factor, cell = this.cells[0], point = null) {
    if (!cell) return;
    const before = this.lie(cell), zoom = Math.min(Math.max(this.zoom * factor, 0.5), LARGEST);
    const [x, y] = point || [before.width / 2, before.height / 2], grown = zoom / this.zoom;
    const left = x - (x - before.left) * grown, top = y - (y - before.top) * grown;
    this.zoom = zoom;
    this.x = this.y = 0;
    const bare = this.lie(cell);
    this.x = (left - bare.left) * cell.sign;
    this.y = top - bare.top;
    this.draw();
  }

  window(dx, dy) {
    const look = this.look, width = look.high - look.low, level = (look.high + look.low) / 2;
    const wide = Math.min(Math.max(width * Math.exp(dx / 200), 0.004), 2), middle = Math.min(Math.max(level + dy / 500, 0), 1);
    Object.assign(look, { low: middle - wide / 2, high: middle + wide / 2 });
    this.draw();
    this.changed();
  }

  listen(cell) {
    const { canvas } = cell, pointers = this.pointers;
    const at = (event) => {
      const edge = canvas.getBoundingClientRect();
      return [event.clientX - edge.left, event.clientY - edge.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.magnify(Math.exp(-event.deltaY / 400), cell, at(event));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.only(cell.place));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      this.choose(cell.place);
    });
    const end = (event) => pointers.delete(event.pointerId);
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId), now = at(event);
      if (!last) return;
      const [dx, dy] = [now[0] - last[0], now[1] - last[1]];
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
        const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
        this.magnify(apart(now) / apart(last), cell, [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
      } else if (this.tool === "window" || event.buttons === 2 || event.shiftKey) {
        this.window(dx, dy);
      } else {
        this.x += cell.sign * dx;
        this.y += dy;
        this.draw();
      }
      pointers.set(event.pointerId, now);
    });
  }
}

export const words = (name) => name.replaceAll("_", " ");

export function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

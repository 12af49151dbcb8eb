"use strict";
const form = document.querySelector(".bar"), hanging = document.querySelector(".hanging");
function show() {
  const label = form.elements.label ? form.elements.label.value : "";
  for (const heat of document.querySelectorAll(".heat")) {
    heat.classList.toggle("off", heat.dataset.label !== label);
    heat.setAttribute("opacity", form.elements.opacity.value / 100);
  }
  for (const box of document.querySelectorAll(".box")) box.classList.toggle("off", !form.elements.boxes.checked);
  hanging.classList.toggle("inverted", form.elements.invert.checked);
}
function enlarge(figure) {
  const there = figure.classList.contains("shown");
  for (const other of document.querySelectorAll("figure")) other.classList.remove("shown");
  figure.classList.toggle("shown", !there);
  hanging.classList.toggle("large", !there);
}
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
for (const figure of document.querySelectorAll("figure:not(.empty)")) {
  figure.addEventListener("click", () => enlarge(figure));
  figure.addEventListener("keydown", (event) => { if (event.key === "Enter") enlarge(figure); });
}
show();

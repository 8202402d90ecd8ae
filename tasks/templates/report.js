"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data-viewer").textContent);
  const frame = byId("frame"), divider = byId("divider");
  let current = 0;

  // Names come from files: they are only ever set as text or attribute, never as HTML.
  function show() {
    const image = data.images[current];
    frame.style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
    byId("image-name").textContent = image.name;
    const views = { left: byId("left").value, right: byId("right").value };
    for (const [side, view] of Object.entries(views)) {
      const element = byId(`${side}-image`);
      element.src = image.views[view];
      element.alt = `${image.name}, ${data.views[view]}`;
      element.classList.toggle("pixels", view === "lr");
      byId(`${side}-tag`).textContent = data.views[view];
    }
    for (const row of byId("image-scores").rows) {
      const view = row.dataset.view;
      image.scores[view].forEach((text, index) => { row.cells[index + 1].textContent = text; });
      row.classList.toggle("shown", view === views.left || view === views.right);
    }
    for (const button of document.querySelectorAll(".thumbs button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.index) === current));
    }
  }

  function cut() {
    frame.style.setProperty("--cut", `${divider.value}%`);
    divider.setAttribute("aria-valuetext", `${divider.value} % ${byId("left-tag").textContent}`);
  }

  function sortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
        body.append(...(down ? rows.reverse() : rows));
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  function compare(a, b) {
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b) : difference;
  }

  byId("left").addEventListener("change", () => { show(); cut(); });
  byId("right").addEventListener("change", show);
  divider.addEventListener("input", cut);
  document.querySelector(".thumbs").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) { current = Number(button.dataset.index); show(); }
  });
  document.querySelectorAll("main section > .scroll > table").forEach(sortable);
  show();
  cut();
})();

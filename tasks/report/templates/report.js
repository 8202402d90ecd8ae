"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // Names come from files: they are only ever set as text or attribute, never as HTML.
  function viewer(data) {
    const frame = byId("frame"), divider = byId("divider");
    let current = 0;

    function show() {
      const image = data.images[current];
      frame.style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
      byId("image-name").textContent = image.name;
      const views = { left: byId("left").value, right: byId("right").value };
      for (const [side, view] of Object.entries(views)) {
        const element = byId(`${side}-image`);
        element.src = data.base + image.views[view];
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

    byId("left").addEventListener("change", () => { show(); cut(); });
    byId("right").addEventListener("change", show);
    divider.addEventListener("input", cut);
    document.querySelector(".thumbs").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) { current = Number(button.dataset.index); show(); }
    });
    show();
    cut();
  }

  // Numbers before cells without one (a dash: nothing was measured), whichever way the numbers are sorted.
  function compare(a, b, sign) {
    if (a.number !== null && b.number !== null) return sign * (a.number - b.number);
    if (a.number !== null || b.number !== null) return a.number !== null ? -1 : 1;
    return sign * a.text.localeCompare(b.text, "en", { numeric: true });
  }

  function key(cell) {
    const value = cell.dataset.value;
    return { number: value === undefined ? null : Number(value), text: cell.textContent };
  }

  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const sign = down ? -1 : 1;
        body.append(...[...body.rows].sort((a, b) => compare(key(a.cells[column]), key(b.cells[column]), sign)));
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  const data = byId("data-viewer");
  if (data) viewer(JSON.parse(data.textContent));
  document.querySelectorAll(".scroll > table:not(.scores)").forEach(sortable);
})();

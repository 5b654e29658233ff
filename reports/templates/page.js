(() => {
  "use strict";
  const root = document.documentElement;
  performance.mark("drawing");
  root.classList.add("drawn");  // before drawing: a hidden place has no width

  // The theme is the system's until the reader asks for the other.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const offer = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; offer(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", offer);
  offer();

  // Every header of a sortable table becomes a button. What has no number (data-value="") is last either way.
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b;
  function sort(table, head, descending) {
    const column = head.cellIndex, body = table.tBodies[0];
    const [without, rows] = [[], []];
    for (const row of body.rows) (key(row, column) === "" ? without : rows).push(row);
    rows.sort((a, b) => (descending ? -1 : 1) * order(key(a, column), key(b, column)));
    body.append(...rows, ...without);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head, head.getAttribute("aria-sort") === "ascending"));
    }
  }

  // The fields of a filter hide rows: text is looked for in the whole row, a choice in the row's data of that name.
  for (const form of document.querySelectorAll("form.filter")) {
    const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
    const update = () => {
      const text = form.elements.text.value.trim().toLowerCase();
      const choices = [...form.querySelectorAll("select")].filter((select) => select.value);
      for (const row of rows) {
        row.hidden = !(row.textContent.toLowerCase().includes(text)
          && choices.every((select) => row.dataset[select.name] === select.value));
      }
      form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
  }

  // On a narrow screen labels would lie on each other: the first of them stays, and hovering tells what the others did.
  function thin(place) {
    const kept = [];
    for (const label of place.querySelectorAll(".annotation")) {
      const a = label.getBoundingClientRect();
      const free = kept.every((b) => a.right < b.left || b.right < a.left || a.bottom < b.top || b.bottom < a.top);
      label.style.visibility = free ? "" : "hidden";
      if (free) kept.push(a);
    }
  }

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  for (const place of document.querySelectorAll(".plot")) {
    const figure = figures[place.id.slice("plot-".length)];
    if (coarse) figure.layout.dragmode = false;
    place.style.minHeight = figure.layout.height + "px";
    Plotly.newPlot(place, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: "tools" in place.dataset && !coarse ? "hover" : false,
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],  // not plotly's own: one uploads the figure
    });
    thin(place);
    place.on("plotly_afterplot", () => thin(place));
  }
  for (const box of document.querySelectorAll("#traces input")) {
    const plot = "plot-" + box.closest("fieldset").dataset.plot;
    box.addEventListener("change", () =>
      Plotly.restyle(plot, {visible: box.checked ? true : "legendonly"}, box.value.split(" ").map(Number)));
  }
})();

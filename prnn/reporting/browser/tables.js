// Sorting of tables, and hiding of runs in them.

const DIRECTIONS = { ascending: 1, descending: -1 };

/** Headers that sort, of the tables of a new or a newer page. */
function makeSortable(root) {
  for (const table of root.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", "", ...head.childNodes);
      button.type = "button";
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        sort(table, column, direction);
        if (table.classList.contains("overview")) {
          state.sort = [column, direction];
          save();
        }
      });
      head.append(button);
    });
    if (table.classList.contains("overview") && state.sort) sort(table, ...state.sort);
  }
}

/** Sort by a column: numbers as numbers, texts as texts; rows without a value come last. */
function sort(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => {
    const { dataset, textContent } = row.cells[column] || {};
    return dataset && "value" in dataset ? Number(dataset.value) : (textContent || "–").trim();
  };
  const compare = (a, b) => {
    if (a === "–" || b === "–") return (a === "–") - (b === "–");
    if (typeof a === "number" && typeof b === "number") return DIRECTIONS[direction] * (a - b);
    return DIRECTIONS[direction] * String(a).localeCompare(String(b), "en", { numeric: true });
  };
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

/** A run's button in the legend: a click hides or shows it, a double click or Alt and click shows it alone. */
function runButton(index) {
  const { label, color } = report.runs[index];
  const button = element("button", "", swatch(color, label));
  button.type = "button";
  button.title = "click: hide or show; double click: show it alone";
  button.addEventListener("click", (event) => (event.altKey ? alone(label) : flip(label)));
  button.addEventListener("dblclick", () => alone(label));
  return button;
}

function flip(label) {
  if (!state.hidden.delete(label)) state.hidden.add(label);
  shownRuns();
}

/** Show one run alone, or all if it is. */
function alone(label) {
  const others = report.runs.map((run) => run.label).filter((each) => each !== label);
  const isAlone = !state.hidden.has(label) && others.every((each) => state.hidden.has(each));
  state.hidden = new Set(isAlone ? [] : others);
  shownRuns();
}

/** Apply what is hidden to all of the page. */
function shownRuns() {
  markHidden(document);
  for (const chart of charts.values()) chart.invalidate("all");
  save();
}

function markHidden(root) {
  [...document.getElementById("runs").children].forEach((button, index) => {
    button.setAttribute("aria-pressed", !isHidden(index));
  });
  for (const part of root.querySelectorAll("[data-run]")) {
    part.classList.toggle("off", isHidden(Number(part.dataset.run)));
  }
}

/** The names of runs in the overview hide them too. */
function nameButtons(root) {
  for (const row of root.querySelectorAll(".overview tr[data-run]")) {
    row.cells[0].replaceChildren(runButton(Number(row.dataset.run)));
  }
}

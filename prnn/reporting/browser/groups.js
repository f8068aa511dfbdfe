// The charts in their groups.

/** The figures of the charts, in a group per section; those that stay keep what was chosen. */
function arrange() {
  const names = report.charts.map(({ section, title }) => `${section}\n${title}`);
  const keys = names.map((name, index) => `${name}\n${names.slice(0, index).filter((each) => each === name).length}`);
  const changed = keys.join() !== [...charts.keys()].join();
  const kept = new Map(charts);
  charts.clear();
  keys.forEach((key, index) => {
    charts.set(key, kept.get(key) || new Chart());
    charts.get(key).update(report.charts[index]);
  });
  for (const [key, chart] of kept) if (!charts.has(key)) chart.remove();
  if (changed) group();
  document.getElementById("nothing").hidden = keys.length > 0;
}

function group() {
  const root = document.getElementById("charts");
  const sections = new Map();
  root.replaceChildren();
  for (const section of document.querySelectorAll(".charts[data-section]")) {
    section.replaceChildren();
    sections.set(section.dataset.section, section);
  }
  for (const chart of charts.values()) {
    const { section } = chart.data;
    if (!sections.has(section)) {
      sections.set(section, element("div", "charts"));
      root.append(element("section", "group", heading(section), sections.get(section)));
    }
    sections.get(section).append(chart.figure);
  }
  pack([...root.children]);
}

function heading(section) {
  const button = element("button", "", section);
  button.type = "button";
  button.setAttribute("aria-expanded", true);
  button.addEventListener("click", () => {
    const closed = button.closest(".group").classList.toggle("closed");
    button.setAttribute("aria-expanded", !closed);
  });
  return element("h2", "", button);
}

const COLUMNS = 3; // of a wide window; a narrower one has fewer (page.css)

/** Groups beside each other where they fit into a row, whose last one is widened if the next does not fit. */
function pack(groups) {
  let [left, last] = [COLUMNS, null];
  for (const group of groups) {
    const figures = [...group.lastElementChild.children];
    const count = figures.length + figures.filter((figure) => figure.matches(".hero")).length;
    const width = Math.min(count, COLUMNS);
    if (width > left) {
      last.style.setProperty("--wide", Number(last.style.getPropertyValue("--wide")) + left);
      left = COLUMNS;
    }
    group.style.setProperty("--wide", width);
    group.style.setProperty("--narrow", Math.min(count, 2));
    left = left === width ? COLUMNS : left - width;
    last = group;
  }
}

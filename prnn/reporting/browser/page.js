// The page: its toolbar, the charts in their groups, and newer pages while runs are watched.

const opened = new Map(); // of the details that the reader has opened or closed, by key

/** The figures of the charts, in a group per section; those that stay keep what was chosen. */
function arrange() {
  const keys = report.charts.map(({ section, title }) => `${section}\n${title}`);
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
    const count = [...group.lastElementChild.children].reduce((sum, figure) => sum + (figure.matches(".hero") ? 2 : 1), 0);
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

function toolbar() {
  const choose = (name, then) => {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) {
      input.checked = input.value === state[name];
      input.addEventListener("change", () => {
        state[name] = input.value;
        then();
      });
    }
  };
  const redraw = () => {
    for (const chart of charts.values()) chart.invalidate("all");
    save();
  };
  choose("axis", () => {
    state.zoom = null; // a range of steps is none of tokens
    zoomed();
    redraw();
  });
  choose("scale", () => {
    for (const chart of charts.values()) Object.assign(chart, { scale: null, y: null });
    redraw();
  });
  const [slider, output] = [document.getElementById("smoothing"), document.getElementById("smoothed")];
  const show = () => (output.textContent = state.smoothing ? state.smoothing.toFixed(2) : "off");
  slider.value = state.smoothing;
  slider.addEventListener("input", () => {
    state.smoothing = Number(slider.value);
    show();
    redraw();
  });
  show();
  document.getElementById("reset").addEventListener("click", () => reset());
  document.getElementById("toolbar").hidden = false;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function legend() {
  document.getElementById("unit").textContent = unit();
  if (report.runs.length > 1) {
    document.getElementById("runs").replaceChildren(...report.runs.map((_, index) => runButton(index)));
  }
}

/** What the scripts add to the parts of a page. */
function furnish(root) {
  makeSortable(root);
  if (report.runs.length > 1) nameButtons(root);
  markHidden(root);
  for (const details of root.querySelectorAll("details[data-key]")) {
    if (opened.has(details.dataset.key)) details.open = opened.get(details.dataset.key);
    details.firstElementChild.addEventListener("click", () => opened.set(details.dataset.key, !details.open));
  }
}

document.addEventListener("scroll", () => {
  for (const chart of charts.values()) chart.tooltip.hidden = true;
}, { passive: true });

/** Take the data and the parts that changed from a newer page; what the reader has chosen stays. */
function renew(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const data = page.getElementById("data").textContent;
  for (const part of page.querySelectorAll("[data-live]")) {
    const name = part.dataset.live;
    const now = document.querySelector(`[data-live=${name}]`);
    if (parts.get(name) === part.innerHTML) continue;
    parts.set(name, part.innerHTML);
    now.replaceChildren(...part.childNodes);
    report = JSON.parse(data);
    furnish(now);
  }
  if (data !== source) {
    source = data;
    report = JSON.parse(data);
    legend();
    markHidden(document);
    arrange();
  }
}

/** Ask for a newer page again and again. */
async function watch() {
  const status = document.getElementById("status");
  const say = (state, words) => {
    status.className = state;
    status.textContent = words;
  };
  let tag = null;
  let changed = "";
  for (;;) {
    const started = performance.now();
    try {
      const answer = await fetch(location.pathname, { cache: "no-cache" });
      const text = await answer.text();
      if (!answer.ok) say("gone", text);
      else {
        if (answer.headers.get("ETag") !== tag && !pressed) {
          renew(text);
          tag = answer.headers.get("ETag");
          changed = new Date().toLocaleTimeString();
        }
        const going = report.runs.filter((run) => !run.ended).length;
        const runs = report.runs.length === 1 ? "the run has ended" : "all runs have ended";
        const count = report.runs.length === 1 ? "" : `${going} of ${report.runs.length} runs unfinished, `;
        say(going ? "live" : "ended", going ? `live: ${count}last change at ${changed}` : runs);
      }
    } catch {
      say("gone", "the server is gone: this page is no longer updated");
    }
    const took = performance.now() - started; // a long record is not read all the time
    await new Promise((done) => setTimeout(done, Math.max(1000 * Number(status.dataset.seconds), 5 * took)));
  }
}

window.addEventListener("beforeprint", () => {
  for (const chart of charts.values()) {
    chart.visible = true;
    chart.refresh();
  }
});

let source = document.getElementById("data").textContent;
const parts = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.dataset.live, part.innerHTML]));
let pressed = false; // a page is not renewed below a finger or a pointer that drags
for (const name of ["pointerdown", "pointerup", "pointercancel"]) {
  document.addEventListener(name, () => (pressed = name === "pointerdown"), true);
}
report = JSON.parse(source);
restore();
legend();
toolbar();
furnish(document);
arrange();
zoomed();
if (document.getElementById("status")) watch();

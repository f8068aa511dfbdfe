// The page: its toolbar, and what the scripts add to its parts.

const opened = new Map(); // of the details that the reader has opened or closed, by key

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

window.addEventListener("beforeprint", () => {
  for (const chart of charts.values()) {
    chart.visible = true;
    chart.refresh();
  }
});

report = JSON.parse(document.getElementById("data").textContent);
restore();
legend();
toolbar();
furnish(document);
arrange();
zoomed();
const watched = document.getElementById("status");
if (watched) watch(watched);

// A chart: its figure, and the uPlot inside it.

const STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();
const TIMES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800,
  21600, 43200, ...[1, 2, 5, 10, 20, 50, 100].map((days) => 86400 * days)];
const DASHES = [[], [7, 4], [2, 3]];
const DOTTED_UP_TO = 40; // points of a curve in view that are marked each
const MOST_ROWS = 20; // of a tooltip, a quarter of them in a narrow window
const NARROW = 600;

let report = null; // the data of the page: runs and charts
const charts = new Map(); // by section, title and number among its namesakes, in their order

function element(tag, classes, ...content) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...content);
  return made;
}

function toggle(words, title, action) {
  const made = element("button", "tool", words);
  made.type = "button";
  made.title = title;
  made.addEventListener("click", action);
  return made;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colorOf = (index) => style(`--c${index % report.colors}`);
const isHidden = (run) => state.hidden.has(report.runs[run].label);

/** The whole x axis: of a chart, that of its runs, whatever else they recorded, so that charts are comparable. */
function extent(chart = null) {
  const ends = [];
  for (const { run, steps } of report.charts.flatMap((each) => each.curves)) {
    const last = steps[steps.length - 1];
    const x = state.axis === "step" ? last : position(report.runs[run], state.axis, last);
    if (x !== null && !isHidden(run) && (!chart || chart.runs.has(run))) ends.push(x);
  }
  return [0, Math.max(0, ...ends) || 1];
}

class Chart {
  constructor() {
    this.scale = null; // "log" or "linear", if chosen for this chart
    this.all = false; // whether outliers are inside the axis
    this.y = null; // the range of the y axis, if zoomed
    this.active = false; // whether the pointer or the keys are in this chart, and not only in one beside it
    this.visible = false;
    this.stale = "all";
    this.title = element("b");
    this.note = element("small");
    this.clipped = toggle("", "show all values", () => this.set({ all: !this.all, y: null }));
    this.log = toggle("log", "logarithmic y axis", () => this.set({ scale: this.isLog() ? "linear" : "log", y: null }));
    this.large = toggle("⤢", "larger or smaller", () => this.figure.classList.toggle("large"));
    this.tools = element("span", "tools", this.clipped, this.log, this.large);
    this.legend = element("p", "legend");
    this.box = element("div", "plot");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "group");
    this.tooltip = element("div", "tooltip");
    this.tooltip.hidden = true;
    this.tooltip.setAttribute("aria-live", "polite");
    const words = element("span", "", this.title, " ", this.note);
    this.figure = element("figure", "chart", element("figcaption", "", words, this.tools), this.legend);
    this.figure.append(this.box);
    document.body.append(this.tooltip);
    this.plot = null;
    seen.observe(this.figure);
    resized.observe(this.box);
    gestures(this);
  }

  /** Show other data, those of a newer page. */
  update(data) {
    this.data = data;
    this.runs = new Set(data.curves.map((curve) => curve.run));
    this.title.textContent = data.title;
    this.note.textContent = [data.unit, data.note].filter(Boolean).join(", ");
    this.figure.classList.toggle("hero", data.hero);
    const named = data.curves.filter((curve) => curve.name);
    this.legend.replaceChildren(...(this.isSplit() ? [] : named.map((curve) => swatch(curve.color, curve.name))));
    this.invalidate("all");
  }

  /** Whether each of several runs has a curve for training and one for validation, in its colour. */
  isSplit() {
    return report.runs.length > 1 && this.data.curves.some((curve) => curve.fine);
  }

  set(choice) {
    Object.assign(this, choice);
    this.invalidate("all");
  }

  /** Draw at the next frame, or when on screen: "all", or its "scales" alone. */
  invalidate(what) {
    this.stale = this.stale === "all" ? "all" : what;
    frame();
  }

  refresh() {
    if (!this.visible || !this.stale) return;
    if (this.stale === "all" || !this.plot) this.draw();
    else this.rescale();
    this.stale = null;
  }

  /** The curves of the runs shown, with their points on the current axis. */
  curves() {
    const found = [];
    for (const curve of this.data.curves) {
      if (isHidden(curve.run)) continue;
      const run = report.runs[curve.run];
      curve.on = curve.on || {};
      const shown = (curve.on[state.axis] = curve.on[state.axis] || {
        points: points(run, state.axis, curve),
        upper: curve.upper && points(run, state.axis, curve.upper),
      });
      if (shown.points.x.length) found.push({ ...curve, ...shown, label: nameOf(run, curve) });
    }
    return found;
  }

  isLog() {
    const scale = this.scale || state.scale;
    if (scale !== "auto") return scale === "log";
    return !this.data.whole && spansMagnitudes(this.values(-Infinity, Infinity));
  }

  /** The values between `low` and `high` on the x axis, and the nearest beside them. */
  values(low, high) {
    const found = [];
    for (const { points: inner, upper } of this.lines) {
      for (const { x, y } of upper ? [inner, upper] : [inner]) {
        const end = Math.min(x.length, after(x, high) + 1);
        for (let index = Math.max(0, after(x, low) - 1); index < end; index++) {
          if (y[index] !== null) found.push(y[index]);
        }
      }
    }
    return found;
  }

  scales() {
    const [low, high] = state.zoom || extent(this);
    const found = range(this.values(low, high), this.logarithmic, this.data.whole, this.all);
    this.clipped.hidden = !(found.clipped || this.all) || this.y !== null;
    this.clipped.textContent = this.all ? "hide outliers" : `${exact(found.clipped)} outside · show all`;
    const [least, most] = this.y || [found.low, found.high];
    const [from, to, bottom, top] = [
      place(state.axis, low), place(state.axis, high), quantity(this.data, least), quantity(this.data, most),
    ];
    const ranges = `${from} to ${to}, ${bottom} to ${top}`;
    this.box.setAttribute("aria-label", `${this.data.title}: ${ranges}; arrow keys show values`);
    return { x: { min: low, max: high }, y: { min: least, max: most } };
  }

  rescale() {
    const { x, y } = this.scales();
    this.plot.batch(() => {
      this.plot.setScale("x", x);
      this.plot.setScale("y", y);
    });
  }

  draw() {
    const at = this.plot && this.active ? this.cursor : null;
    if (this.plot) this.plot.destroy();
    this.plot = null;
    this.lines = this.curves();
    this.logarithmic = this.isLog();
    this.log.setAttribute("aria-pressed", this.logarithmic);
    this.box.replaceChildren();
    this.tooltip.hidden = true;
    if (!this.lines.length) {
      this.clipped.hidden = true;
      const hidden = this.data.curves.every((curve) => isHidden(curve.run));
      this.box.append(element("p", "empty", hidden ? "its runs are hidden" : `no ${state.axis} are recorded`));
      return;
    }
    const { options, data } = drawing(this);
    options.hooks.ready = [() => at !== null && this.point(at)]; // before it, there are no scales
    this.plot = new uPlot(options, data, this.box);
    touch(this);
  }

  /** Put the cursor at `x`, as the pointer would. */
  point(x) {
    this.active = true;
    const left = Math.min(Math.max(this.plot.valToPos(x, "x"), 0), this.plot.over.clientWidth);
    this.plot.setCursor({ left, top: this.plot.over.clientHeight / 2 }, true, true);
  }

  /** The chart is not on a newer page. */
  remove() {
    if (this.plot) this.plot.destroy();
    this.tooltip.remove();
    this.figure.remove();
  }

  leave() {
    this.active = false;
    this.tooltip.hidden = true;
    if (this.plot) this.plot.setCursor({ left: -10, top: -10 }, true, true);
  }
}

function nameOf(run, curve) {
  return [report.runs.length > 1 ? run.label : "", curve.name].filter(Boolean).join(" · ");
}

function swatch(color, name) {
  const made = element("span", `c${color % report.colors}${color >= report.colors ? " again" : ""}`, element("i"), name);
  return made;
}

let requested = false;

function frame() {
  if (requested) return;
  requested = true;
  requestAnimationFrame(() => {
    requested = false;
    for (const chart of charts.values()) chart.refresh();
  });
}

const chartOf = (node) => [...charts.values()].find((chart) => chart.figure.contains(node));
const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const chart = chartOf(target);
      if (chart) chart.visible = isIntersecting;
    }
    frame();
  },
  { rootMargin: "300px" },
);
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = chartOf(target);
    const size = chart && chart.plot;
    if (size && (size.width !== target.clientWidth || size.height !== target.clientHeight)) chart.invalidate("all");
  }
});

// Zooming and panning, with a mouse, by touch and by keys. All charts share the x axis, each has its own y axis.

const LEAST = 1e-6; // share of the whole x axis that a zoom may show

/** Show `low` to `high` on all x axes, within the curves' extent. */
function zoom(low, high) {
  const [first, last] = extent();
  const width = Math.min(Math.max(high - low, LEAST * (last - first)), last - first);
  const start = Math.min(Math.max(low, first), last - width);
  state.zoom = width >= 0.999 * (last - first) ? null : [start, start + width];
  zoomed();
}

function zoomed() {
  document.getElementById("reset").disabled = !state.zoom && ![...charts.values()].some((chart) => chart.y);
  for (const chart of charts.values()) chart.invalidate("scales");
  save();
}

/** Zoom by a factor around `x`, which stays where it is; move by `share` of the width. */
function zoomBy(chart, factor, x, share = 0) {
  const [low, high] = state.zoom || extent(chart);
  const moved = share * (high - low);
  zoom(x - (x - low) * factor + moved, x + (high - x) * factor + moved);
}

/** Back to whole curves; where they are whole, with outliers, or without. */
function reset(chart) {
  if (!state.zoom && chart && !chart.y) chart.set({ all: !chart.all });
  state.zoom = null;
  for (const each of chart ? [chart] : charts.values()) each.y = null;
  zoomed();
}

/** The rectangle that was dragged. */
function selected(chart, plot) {
  const { left, top, width, height } = plot.select;
  if (!width && !height) return;
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  if (height > 0 && height < plot.over.clientHeight) {
    chart.y = [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")];
  }
  if (width > 0 && width < plot.over.clientWidth) zoom(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
  else zoomed();
}

/** Shift and drag: move the zoomed part. */
function shift(chart, plot, event) {
  const grabbed = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x");
  const move = ({ clientX }) => {
    const at = plot.posToVal(clientX - plot.over.getBoundingClientRect().left, "x");
    const [low, high] = state.zoom || extent(chart);
    zoom(low + grabbed - at, high + grabbed - at);
  };
  const end = () => {
    document.removeEventListener("mousemove", move);
    document.removeEventListener("mouseup", end);
  };
  document.addEventListener("mousemove", move);
  document.addEventListener("mouseup", end);
}

/** What a chart's box listens to, whatever is drawn in it. */
function gestures(chart) {
  const { box } = chart;
  box.addEventListener("mouseenter", () => (chart.active = true));
  box.addEventListener("mouseleave", () => {
    chart.active = false;
    chart.tooltip.hidden = true;
  });
  box.addEventListener("blur", () => chart.leave());
  box.addEventListener("wheel", (event) => wheel(chart, event), { passive: false });
  box.addEventListener("keydown", (event) => {
    if (!chart.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = KEYS[event.shiftKey && event.key.startsWith("Arrow") ? `Shift${event.key}` : event.key];
    if (!action) return;
    event.preventDefault();
    action(chart);
  });
}

const middle = (chart) => (state.zoom || extent(chart)).reduce((a, b) => a + b) / 2;
const center = (chart) => (chart.active && chart.cursor !== undefined ? chart.cursor : middle(chart));
const KEYS = {
  ArrowLeft: (chart) => along(chart, -1),
  ArrowRight: (chart) => along(chart, 1),
  ShiftArrowLeft: (chart) => zoomBy(chart, 1, 0, -0.2),
  ShiftArrowRight: (chart) => zoomBy(chart, 1, 0, 0.2),
  "+": (chart) => zoomBy(chart, 0.6, center(chart)),
  "=": (chart) => zoomBy(chart, 0.6, center(chart)),
  "-": (chart) => zoomBy(chart, 1 / 0.6, center(chart)),
  0: (chart) => reset(chart),
  Escape: (chart) => chart.leave(),
};

/** The cursor to the next recorded point, or by a hundredth of the width where these are closer. */
function along(chart, way) {
  const { min, max } = chart.plot.scales.x;
  const from = chart.active && chart.cursor !== undefined ? chart.cursor : way > 0 ? min : max;
  const least = (max - min) / 100;
  let best = way > 0 ? max : min;
  for (const { points: found } of chart.lines) {
    const index = way > 0 ? after(found.x, from + least) : after(found.x, from - least) - 1;
    const x = found.x[Math.min(Math.max(index, 0), found.x.length - 1)];
    if ((x - from) * way > 0 && (best - x) * way > 0) best = x;
  }
  chart.point(best);
}

function wheel(chart, event) {
  if (!chart.plot) return;
  const x = chart.plot.posToVal(event.clientX - chart.plot.over.getBoundingClientRect().left, "x");
  if (event.ctrlKey) zoomBy(chart, Math.exp(Math.max(-50, Math.min(50, event.deltaY)) / 100), x);
  else if (state.zoom && Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    zoomBy(chart, 1, 0, event.deltaX / chart.plot.over.clientWidth);
  } else return; // the page scrolls
  event.preventDefault();
}

/** One finger across shows values, up and down scrolls the page; two zoom and move. */
function touch(chart) {
  const { over } = chart.plot;
  const fingers = new Map();
  const at = (event) => event.clientX - over.getBoundingClientRect().left;
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return { width: Math.max(Math.abs(a - b), 20), x: chart.plot.posToVal((a + b) / 2, "x") };
  };
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") fingers.set(event.pointerId, at(event));
  });
  over.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = fingers.size === 2 ? spread() : null;
    fingers.set(event.pointerId, at(event));
    if (!before) {
      chart.point(chart.plot.posToVal(at(event), "x"));
      return;
    }
    const now = spread();
    const [low, high] = state.zoom || extent(chart);
    zoomBy(chart, before.width / now.width, now.x, (before.x - now.x) / (high - low));
  });
  for (const name of ["pointerup", "pointercancel"]) over.addEventListener(name, (e) => fingers.delete(e.pointerId));
}

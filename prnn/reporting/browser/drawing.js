// What uPlot is given for a chart: options and aligned data.

function drawing(chart) {
  const { series, tables, bands } = lines(chart);
  const { x, y } = chart.scales();
  const options = {
    width: chart.box.clientWidth,
    height: chart.box.clientHeight,
    padding: [8, 22, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: false, auto: false, range: (_, low, high) => [low, high], ...x },
      y: { auto: false, distr: chart.logarithmic ? 3 : 1, range: (_, low, high) => [low, high], ...y },
    },
    axes: [horizontal(chart), vertical(chart)],
    series,
    bands,
    cursor: cursor(chart),
    hooks: { setSelect: [(plot) => selected(chart, plot)], setCursor: [() => hover(chart)] },
  };
  return { options, data: uPlot.join(tables) };
}

function lines(chart) {
  const [series, tables, bands] = [[{}], [], []];
  const add = (found, y, options) => {
    const usable = chart.logarithmic ? y.map((each) => (each > 0 ? each : null)) : y;
    tables.push([found.x, usable]);
    series.push({ width: 2, points: { show: false }, ...options });
  };
  for (const curve of chart.lines) {
    const { points: found, upper, color, fine } = curve;
    const stroke = () => colorOf(color);
    const width = found.x.length > 300 || fine ? 1.25 : 2;
    const dash = DASHES[Math.floor(color / report.colors) % DASHES.length];
    curve.shown = state.smoothing && found.y.length > 2 ? smoothed(found.y, state.smoothing) : found.y;
    if (curve.shown !== found.y) add(found, found.y, { stroke, width: 1, alpha: 0.25, dash });
    if (upper) {
      add(upper, upper.y, { stroke, width: 0 });
      bands.push({ series: [series.length - 1, series.length], fill: () => `${colorOf(color)}2a` });
    }
    add(found, curve.shown, {
      stroke, width, dash, alpha: fine ? 0.65 : 1, points: { show: true, size: 5, fill: stroke, filter: marked(curve) },
    });
    curve.index = series.length - 1;
  }
  return { series, tables, bands };
}

/** The points with a dot: all of a short curve, but of a thin one, and those without a neighbour to draw a line to. */
const marked = (curve) => (plot, index) => {
  const [x, y] = [plot.data[0], plot.data[index]];
  const found = [];
  for (let i = after(x, plot.scales.x.min) - 1; i <= after(x, plot.scales.x.max); i++) {
    if (y[i] !== null && y[i] !== undefined) found.push(i);
  }
  if (!curve.fine && found.length <= DOTTED_UP_TO) return found;
  const beside = (i, way) => {
    while (y[(i += way)] === undefined && i >= 0 && i < y.length);
    return y[i] === undefined ? null : y[i];
  };
  return found.filter((i) => beside(i, -1) === null && beside(i, 1) === null);
};

const FONT = "12px system-ui, sans-serif";

function horizontal(chart) {
  const time = state.axis === "seconds";
  const [, longest] = extent(chart);
  const labels = { step: "step", tokens: unit(), seconds: `training time, ${longest < 3600 ? "m:ss" : "h:mm"}` };
  return {
    stroke: () => style("--soft"),
    font: FONT,
    label: labels[state.axis],
    labelFont: FONT,
    labelSize: 18,
    labelGap: 0,
    size: 28,
    gap: 4,
    space: 72,
    incrs: time ? TIMES : STEPS,
    grid: { stroke: () => style("--line"), width: 1 },
    ticks: { stroke: () => style("--line"), width: 1, size: 4 },
    values: (_, splits, __, ___, step) => splits.map((each) => (time ? clock(each, step, longest) : tick(each, step))),
  };
}

function vertical(chart) {
  const { percent } = chart.data;
  const text = (value, step) => (percent ? `${tick(100 * value, 100 * step)} %` : tick(value, step));
  const axis = {
    stroke: () => style("--soft"),
    font: FONT,
    gap: 4,
    space: 34,
    size: (_, values) => Math.max(36, 14 + 6.6 * Math.max(0, ...(values || []).map((each) => each.length))),
    grid: { stroke: () => style("--line"), width: 1 },
    ticks: { show: false },
    values: (_, splits, __, ___, step) => splits.map((each) => text(each, step)),
  };
  if (!chart.logarithmic) return axis;
  return {
    ...axis,
    filter: (_, splits) => splits,
    splits: (_, __, low, high) => logarithmic(low, high),
    values: (_, splits) => splits.map((each) => text(each, Number(each.toPrecision(3)))),
  };
}

/** The unit of all runs' tokens, or "tokens". */
function unit() {
  const units = new Set(report.runs.map((run) => run.unit));
  return units.size === 1 ? [...units][0] : "tokens";
}

function cursor(chart) {
  return {
    y: false,
    drag: { x: true, y: true, uni: 40, dist: 4, setScale: false },
    sync: { key: "prnn", scales: ["x", null], filters: { pub: (type) => ["mousemove", "mouseleave"].includes(type) } },
    bind: {
      dblclick: () => () => reset(chart),
      mousedown: (plot, _, start) => (event) => (event.shiftKey ? shift(chart, plot, event) : start(event)),
    },
    points: { size: 8, width: 1.5, fill: (plot, index) => plot.series[index].stroke(), stroke: () => style("--card") },
    dataIdx: (plot, index, _, x) => {
      const curve = chart.lines.find((each) => each.index === index);
      const found = curve ? nearest(curve.points, x, reach(plot)) : -1;
      return found < 0 ? null : plot.valToIdx(curve.points.x[found]);
    },
  };
}

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
    const dash = DASHES[Math.floor(color / COLORS) % DASHES.length];
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
    sync: { key: "prnn", scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
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

/** How far beyond a curve's end it still has a value: 3 % of the width. */
const reach = (plot) => 0.03 * (plot.scales.x.max - plot.scales.x.min);

/** The tooltip: of each curve the nearest recorded value, and where it is from. */
function hover(chart) {
  const { plot, tooltip } = chart;
  if (!plot) return;
  const { left, top } = plot.cursor;
  tooltip.hidden = !(chart.active && left >= 0);
  if (tooltip.hidden) return;
  const x = (chart.cursor = plot.posToVal(left, "x"));
  const found = chart.lines.map((curve) => [curve, nearest(curve.points, x, reach(plot))]).filter(([, at]) => at >= 0);
  tooltip.hidden = !found.length;
  const away = ([curve, at]) => Math.abs(plot.valToPos(curve.shown[at], "y") - top);
  const groups = byRow(chart, found).map((group) => [group, Math.min(...group.map(away))]);
  const near = [...groups].sort((a, b) => a[1] - b[1]).slice(0, innerWidth < NARROW ? MOST_ROWS / 4 : MOST_ROWS);
  const kept = groups.filter((each) => near.includes(each)).map(([group]) => group);
  tooltip.replaceChildren(rows(chart, kept, near.length && near[0][0]));
  if (groups.length > kept.length) tooltip.append(element("small", "", `and ${groups.length - kept.length} more`));
  beside(tooltip, plot.over.getBoundingClientRect(), left);
}

/** The tooltip beside the cursor; where there is no room, below the plot or above it. */
function beside(tooltip, plot, left) {
  const [width, height] = [tooltip.offsetWidth, tooltip.offsetHeight];
  const [at, edge] = [plot.left + left, document.documentElement.clientWidth];
  const places = [at - 14 - width, at + 14];
  if (left <= plot.width / 2) places.reverse();
  const x = places.find((each) => each > 4 && each + width < edge - 4);
  const below = plot.bottom + 34 + height < innerHeight ? plot.bottom + 34 : plot.top - height - 8;
  const y = x === undefined ? below : Math.min(plot.top, innerHeight - height - 4);
  tooltip.style.left = `${x ?? Math.max(4, Math.min(at - width / 2, edge - width - 4))}px`;
  tooltip.style.top = `${Math.max(4, y)}px`;
}

/** A group per curve; where each run has a training and a validation, a group per run. */
function byRow(chart, found) {
  const groups = new Map();
  for (const each of found) {
    const key = chart.isSplit() ? each[0].run : each[0];
    groups.set(key, [...(groups.get(key) || []), each]);
  }
  return [...groups.values()];
}

/** A row per group. */
function rows(chart, groups, nearest) {
  const names = chart.isSplit() ? [...new Set(groups.flat().map(([curve]) => curve.name))].sort() : [null];
  const body = element("tbody");
  if (names[0]) body.append(element("tr", "", element("th"), ...names.map((name) => element("td", "", name))));
  for (const group of groups) {
    const [{ run, color, label }] = group[0];
    const title = names[0] ? report.runs[run].label : label || chart.data.title;
    const row = element("tr", group === nearest ? "nearest" : "", element("th", "", swatch(color, title)));
    for (const name of names) row.append(value(chart, group.find(([curve]) => !name || curve.name === name)));
    body.append(row);
  }
  return element("table", "", body);
}

/** A curve's value, and the place that it was recorded at. */
function value(chart, found) {
  if (!found) return element("td", "", "–");
  const [{ points: recorded, shown, run }, at] = found;
  const raw = shown === recorded.y ? "" : ` (${quantity(chart.data, recorded.y[at])} raw)`;
  const step = place("step", recorded.step[at]);
  const also = state.axis === "step" ? "" : `${place(state.axis, recorded.x[at], report.runs[run])}, `;
  return element("td", "", element("b", "", quantity(chart.data, shown[at])), raw, " ", element("small", "", `at ${also}${step}`));
}

// The tooltip: each run's value under the pointer.

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
  const where = element("small", "", `at ${also}${step}`);
  return element("td", "", element("b", "", quantity(chart.data, shown[at])), raw, " ", where);
}

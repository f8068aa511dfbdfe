"use strict";
// Shows the values under the pointer. Without JavaScript the page is complete except for this tooltip.
for (const figure of document.querySelectorAll(".chart")) {
  const drawings = [...figure.querySelectorAll("svg")];
  const scripts = [...figure.querySelectorAll("script")];
  // The small drawing's data comes first in the figure, although the large drawing, if any, precedes the small one.
  const data = new Map(drawings.map((svg) => [svg, scripts[svg.classList.contains("large") ? 1 : 0]]));
  for (const svg of drawings) watch(figure, svg, data.get(svg));
}

function watch(figure, svg, script) {
  let data = null;
  const tooltip = document.createElement("div");
  const marks = svg.querySelector(".pointer");
  tooltip.className = "tooltip";
  tooltip.hidden = true;
  figure.append(tooltip);

  svg.addEventListener("pointerleave", () => {
    tooltip.hidden = true;
    marks.replaceChildren();
  });
  svg.addEventListener("pointermove", (event) => {
    data = data || JSON.parse(script.textContent);
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const [low, high, start, end] = data.x;
    const target = low + ((at - start) / (end - start)) * (high - low);
    const reach = 0.03 * (high - low); // no value for a run that ended before this point
    const hits = data.curves
      .map((curve) => [curve, nearest(curve.points, target)])
      .filter(([curve, point]) => point && spans(curve.points, target, reach));
    if (!hits.length) {
      tooltip.hidden = true;
      marks.replaceChildren();
      return;
    }
    const x = hits.map(([, point]) => point[0]).reduce((a, b) => (Math.abs(b - target) < Math.abs(a - target) ? b : a));
    show(tooltip, marks, data, hits, x);
    const inside = figure.getBoundingClientRect();
    const left = event.clientX - inside.left;
    tooltip.style.left = left > inside.width / 2 ? "auto" : `${left + 16}px`;
    tooltip.style.right = left > inside.width / 2 ? `${inside.width - left + 16}px` : "auto";
    tooltip.style.top = `${box.top - inside.top + 12}px`;
  });
}

function spans(points, target, reach) {
  return points[0][0] - reach <= target && target <= points[points.length - 1][0] + reach;
}

function nearest(points, target) {
  let best = null;
  for (const point of points) {
    if (point[1] !== null && (best === null || Math.abs(point[0] - target) < Math.abs(best[0] - target))) best = point;
  }
  return best;
}

function show(tooltip, marks, data, hits, x) {
  const place = (axis, value, log) => {
    const map = log ? Math.log10 : Number;
    const [low, high, start, end] = axis;
    return start + ((map(value) - map(low)) / (map(high) - map(low))) * (end - start);
  };
  marks.replaceChildren(
    draw("line", { x1: place(data.x, x), x2: place(data.x, x), y1: data.y[2], y2: data.y[3] }),
    ...hits.map(([curve, point]) =>
      draw("circle", {
        class: `c${curve.color}`, cx: place(data.x, point[0]), cy: place(data.y, point[1], data.log), r: 4,
      }),
    ),
  );
  tooltip.replaceChildren(line("", `${text(x)} ${data.label}`));
  for (const [curve, point] of hits) {
    const value = data.percent ? `${text(100 * point[1])} %` : text(point[1]);
    tooltip.append(line(`c${curve.color}`, `${curve.name}: ${value}`));
  }
  tooltip.hidden = false;
}

function draw(kind, attributes) {
  const element = document.createElementNS(document.querySelector("svg").namespaceURI, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function line(color, words) {
  const element = document.createElement("div");
  if (color) {
    const dot = document.createElement("i");
    dot.className = color;
    element.append(dot);
  }
  element.append(words);
  return element;
}

function text(value) {
  return Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
}

"use strict";
// Shows the values under the pointer. Without it the page is whole; only this is missing.
for (const figure of document.querySelectorAll(".chart")) {
  const drawings = [...figure.querySelectorAll("svg")];
  const scripts = [...figure.querySelectorAll("script")];
  // The small drawing's data come first; the large one, where there is one, stands before it.
  const data = new Map(drawings.map((svg) => [svg, scripts[svg.classList.contains("large") ? 1 : 0]]));
  for (const svg of drawings) watch(figure, svg, data.get(svg));
}

function watch(figure, svg, script) {
  let data = null;
  const told = document.createElement("div");
  const marks = svg.querySelector(".pointer");
  told.className = "told";
  told.hidden = true;
  figure.append(told);

  svg.addEventListener("pointerleave", () => {
    told.hidden = true;
    marks.replaceChildren();
  });
  svg.addEventListener("pointermove", (event) => {
    data = data || JSON.parse(script.textContent);
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const [low, high, start, end] = data.x;
    const wanted = low + ((at - start) / (end - start)) * (high - low);
    const reach = 0.03 * (high - low); // a run that ended before here has nothing to say
    const found = data.curves
      .map((curve) => [curve, nearest(curve.points, wanted)])
      .filter(([curve, point]) => point && spans(curve.points, wanted, reach));
    if (!found.length) {
      told.hidden = true;
      marks.replaceChildren();
      return;
    }
    const x = found.map(([, point]) => point[0]).reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
    show(told, marks, data, found, x);
    const inside = figure.getBoundingClientRect();
    const left = event.clientX - inside.left;
    told.style.left = left > inside.width / 2 ? "auto" : `${left + 16}px`;
    told.style.right = left > inside.width / 2 ? `${inside.width - left + 16}px` : "auto";
    told.style.top = `${box.top - inside.top + 12}px`;
  });
}

function spans(points, wanted, reach) {
  return points[0][0] - reach <= wanted && wanted <= points[points.length - 1][0] + reach;
}

function nearest(points, wanted) {
  let best = null;
  for (const point of points) {
    if (point[1] !== null && (best === null || Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted))) best = point;
  }
  return best;
}

function show(told, marks, data, found, x) {
  const place = (axis, value, log) => {
    const map = log ? Math.log10 : Number;
    const [low, high, start, end] = axis;
    return start + ((map(value) - map(low)) / (map(high) - map(low))) * (end - start);
  };
  marks.replaceChildren(
    draw("line", { x1: place(data.x, x), x2: place(data.x, x), y1: data.y[2], y2: data.y[3] }),
    ...found.map(([curve, point]) =>
      draw("circle", {
        class: `c${curve.color}`, cx: place(data.x, point[0]), cy: place(data.y, point[1], data.log), r: 4,
      }),
    ),
  );
  told.replaceChildren(line("", `${text(x)} ${data.label}`));
  for (const [curve, point] of found) {
    const value = data.percent ? `${text(100 * point[1])} %` : text(point[1]);
    told.append(line(`c${curve.color}`, `${curve.name}: ${value}`));
  }
  told.hidden = false;
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

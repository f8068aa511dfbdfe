// Numbers as text.

const SUFFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** A tick of an axis whose ticks are `step` apart: 1,500, 20k, 2.5M, 1e-4. */
function tick(value, step) {
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-3 && step < 1e-4)) return short(value);
  const [divisor, suffix] = size >= 1e4 ? SUFFIXES.find(([limit]) => size >= limit) : [1, ""];
  return grouped(value / divisor, decimals(step / divisor)) + suffix;
}

function short(value) {
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

/** How many decimals tell multiples of `step` apart. */
function decimals(step) {
  const isWhole = (value) => Math.abs(value - Math.round(value)) <= 1e-6 * value;
  let count = 0;
  while (count < 9 && !isWhole(step * 10 ** count)) count++;
  return count;
}

function grouped(value, count) {
  return value.toLocaleString("en", { minimumFractionDigits: count, maximumFractionDigits: count });
}

/** Five digits, or all of a whole number. */
function exact(value) {
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-3)) return short(value);
  if (size >= 1e4 || Number.isInteger(value)) return grouped(Math.round(value), 0);
  return String(Number(value.toPrecision(5)));
}

/** A value of a chart, in its unit. */
function quantity(chart, value) {
  if (chart.percent) return `${exact(100 * value)} %`;
  return chart.unit ? `${exact(value)} ${chart.unit}` : exact(value);
}

/** Seconds as h:mm, or m:ss where `step`, the distance of the ticks, or the whole, is short. */
function clock(seconds, step, longest) {
  const digits = step >= 1 ? 0 : decimals(step);
  const units = digits ? seconds : Math.round(seconds);
  const two = (value, count = 0) => value.toFixed(count).padStart(count ? 3 + count : 2, "0");
  if (longest < 3600) return `${Math.floor(units / 60)}:${two(units % 60, digits)}`;
  const minutes = `${Math.floor(units / 3600)}:${two(Math.floor((units % 3600) / 60))}`;
  return step >= 60 ? minutes : `${minutes}:${two(units % 60, digits)}`;
}

/** 3.2 s, 3 min 05 s, 1 h 02 min. */
function duration(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  const two = (value) => String(value).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(Math.round(seconds) % 60)} s`;
  return `${exact(Math.floor(minutes / 60))} h ${two(minutes % 60)} min`;
}

/** A place on the x axis, in words. */
function place(axis, value, run) {
  if (axis === "step") return `step ${exact(Math.round(value))}`;
  if (axis === "tokens") return `${exact(Math.round(value))} ${run ? run.unit : "tokens"}`;
  return `${duration(value)}`;
}

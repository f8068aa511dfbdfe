// Points of curves: their place on the x axis, smoothing, and the range of the y axis.

/** The tokens or seconds of a run at `step`, on the line between the nearest known ones, or null. */
function position(run, axis, step) {
  const steps = run.positions[`${axis}_steps`];
  const values = run.positions[axis];
  if (steps.length < 2) return null;
  const right = Math.min(Math.max(after(steps, step), 1), steps.length - 1);
  const slope = (values[right] - values[right - 1]) / (steps[right] - steps[right - 1]);
  return values[right - 1] + slope * (step - steps[right - 1]);
}

/** The first index whose value is larger than `value`. */
function after(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The points of a curve, or of its band's upper bound, on an axis: `x`, `y` and `step`; y is null in a gap. */
function points(run, axis, columns) {
  const found = { x: [], y: [], step: [] };
  columns.steps.forEach((step, index) => {
    const x = axis === "step" ? step : position(run, axis, step);
    if (x === null || !Number.isFinite(x)) return;
    found.x.push(x);
    found.y.push(columns.values[index]);
    found.step.push(step);
  });
  return found;
}

/** The exponential moving average, without the bias towards 0 at the beginning. */
function smoothed(values, weight) {
  let [average, remaining] = [0, 1];
  return values.map((value) => {
    if (value === null) return null;
    average = weight * average + (1 - weight) * value;
    remaining *= weight;
    return average / (1 - remaining);
  });
}

/** The index of the point nearest to `target` that has a value, or -1; none beyond `reach` of the curve's ends. */
function nearest(found, target, reach) {
  const { x, y } = found;
  if (!x.length || target < x[0] - reach || target > x[x.length - 1] + reach) return -1;
  let right = after(x, target);
  let left = right - 1;
  while (left >= 0 && y[left] === null) left--;
  while (right < x.length && y[right] === null) right++;
  if (left < 0) return right < x.length ? right : -1;
  return right < x.length && x[right] - target < target - x[left] ? right : left;
}

const LOG_FROM = 100; // the ratio of the largest to the smallest value from which an axis is logarithmic
const TRIMMED = 0.05; // share of the values, at each end, that the axis need not show
const FENCE = 3; // spans of the other values by which one lies beyond them to be an outlier

/** Sorted values without the smallest and the largest twentieth. */
function trimmed(sorted) {
  const cut = sorted.length < 8 ? 0 : Math.max(1, Math.floor(TRIMMED * sorted.length));
  return sorted.subarray(cut, sorted.length - cut);
}

/** Whether values span orders of magnitude, but for a few, and none is 0 or less. */
function spansMagnitudes(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = trimmed(sorted);
  return sorted[0] > 0 && middle[middle.length - 1] / middle[0] >= LOG_FROM;
}

/**
 * The range of the y axis over `values`: `{low, high, clipped}`. `clipped` counts the outliers outside, which are far
 * from the middle nine tenths of the values, as in a box plot; there are none with `all`.
 */
function range(values, log, whole, all) {
  const usable = log ? values.filter((each) => each > 0).map(Math.log10) : values;
  const sorted = Float64Array.from(usable).sort();
  if (!sorted.length) return { low: log ? 0.1 : 0, high: 1, clipped: 0 };
  const middle = trimmed(sorted);
  const [least, most] = [middle[0], middle[middle.length - 1]];
  const reach = FENCE * (most - least);
  const shown = all || !reach ? sorted : sorted.filter((each) => each >= least - reach && each <= most + reach);
  const [low, high] = margins(shown[0], shown[shown.length - 1], whole && !log);
  const clipped = sorted.length - shown.length;
  return log ? { low: 10 ** low, high: 10 ** high, clipped } : { low, high, clipped };
}

function margins(least, most, whole) {
  let [low, high] = whole ? [Math.min(least, 0), Math.max(most, 1e-9)] : [least, most];
  if (high - low <= 1e-9 * Math.abs(high)) {
    [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  }
  const margin = 0.05 * (high - low);
  return [whole && low === 0 ? 0 : low - margin, high + margin];
}

/** Ticks of a logarithmic axis: powers of ten, with 2 and 5 between where they are few; a short one's are linear. */
function logarithmic(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first) / 8));
  const factors = last - first <= 3 ? [1, 2, 5] : [1];
  const found = [];
  for (let exponent = first; exponent <= last; exponent += every) {
    for (const factor of factors) found.push(Number(`${factor}e${exponent}`));
  }
  const inside = found.filter((each) => each >= low && each <= high);
  return inside.length > 2 ? inside : linear(low, high);
}

/** About five multiples of 1, 2 or 5 times a power of ten. */
function linear(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => power * factor >= 0.999 * rough);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: count }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

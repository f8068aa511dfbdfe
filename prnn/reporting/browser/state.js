// What the reader has chosen. It is kept in the page's address, so that a reload or a copied link shows the same.

const AXES = ["step", "tokens", "seconds"];
const state = {
  axis: "step",
  scale: "auto",
  smoothing: 0,
  zoom: null, // the range of the x axis of all charts; null: all of it
  hidden: new Set(), // labels of runs
  sort: null, // of the overview: [column, "ascending" or "descending"]
};

function restore() {
  const saved = new URLSearchParams(location.hash.slice(1));
  const one = (name, allowed) => (allowed.includes(saved.get(name)) ? saved.get(name) : allowed[0]);
  const numbers = (name) => (saved.get(name) || "").split(",").map(Number);
  state.axis = one("x", AXES);
  state.scale = one("y", ["auto", "linear", "log"]);
  state.smoothing = Math.min(0.99, Math.max(0, Number(saved.get("smoothing")) || 0));
  const [low, high] = numbers("zoom");
  state.zoom = high > low ? [low, high] : null;
  state.hidden = new Set(saved.getAll("hide"));
  const [column, direction] = (saved.get("sort") || "").split(",");
  state.sort = column ? [Number(column) || 0, direction === "descending" ? direction : "ascending"] : null;
}

let saving = 0;

function save() {
  clearTimeout(saving); // browsers limit how often an address may change
  saving = setTimeout(() => {
    const kept = new URLSearchParams();
    if (state.axis !== "step") kept.set("x", state.axis);
    if (state.scale !== "auto") kept.set("y", state.scale);
    if (state.smoothing) kept.set("smoothing", state.smoothing);
    if (state.zoom) kept.set("zoom", state.zoom.map((each) => Number(each.toPrecision(6))).join());
    for (const label of state.hidden) kept.append("hide", label);
    if (state.sort) kept.set("sort", state.sort.join());
    if (!String(kept) && !location.hash) return;
    try {
      history.replaceState(null, "", `#${kept}`);
    } catch {
      // A browser that refuses it for a file keeps the choices as long as the page is open.
    }
  }, 200);
}

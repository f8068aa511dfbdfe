// Newer pages, while runs are watched.

let source = document.getElementById("data").textContent;
const parts = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.dataset.live, part.innerHTML]));
let pressed = false; // a page is not renewed below a finger or a pointer that drags
for (const name of ["pointerdown", "pointerup", "pointercancel"]) {
  document.addEventListener(name, ({ button }) => (pressed = name === "pointerdown" && button === 0), true);
}

/** Take the data and the parts that changed from a newer page; what the reader has chosen stays. */
function renew(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const data = page.getElementById("data").textContent;
  report = JSON.parse(data);
  for (const part of page.querySelectorAll("[data-live]")) {
    const name = part.dataset.live;
    const now = document.querySelector(`[data-live=${name}]`);
    if (parts.get(name) === part.innerHTML) continue;
    parts.set(name, part.innerHTML);
    now.replaceChildren(...part.childNodes);
    furnish(now);
  }
  if (data !== source) {
    source = data;
    document.getElementById("unit").textContent = unit();
    arrange();
  }
}

/** Ask for a newer page again and again, and say what the runs do. */
async function watch(status) {
  let tag = null;
  let changed = "";
  for (;;) {
    const started = performance.now();
    const { found, text } = await ask();
    if (found && found.ok && found.headers.get("ETag") !== tag && !pressed) {
      renew(text);
      tag = found.headers.get("ETag");
      changed = new Date().toLocaleTimeString();
    }
    status.className = !found || !found.ok ? "gone" : report.runs.every((run) => run.ended) ? "ended" : "live";
    status.textContent = { gone: text, ended: ended(), live: `live: ${unfinished()}last change at ${changed}` }[
      status.className
    ];
    const took = performance.now() - started; // a long record is not read all the time
    await new Promise((done) => setTimeout(done, Math.max(1000 * Number(status.dataset.seconds), 5 * took)));
  }
}

async function ask() {
  try {
    const found = await fetch(location.pathname, { cache: "no-cache" });
    return { found, text: await found.text() };
  } catch {
    return { found: null, text: "the server is gone: this page is no longer updated" };
  }
}

const ended = () => (report.runs.length === 1 ? "the run has ended" : "all runs have ended");

function unfinished() {
  const { length } = report.runs;
  return length === 1 ? "" : `${report.runs.filter((run) => !run.ended).length} of ${length} runs unfinished, `;
}

"use strict";
// Without this script the page shows all strips, best first. With it, `show` draws the current state.
const $ = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const runs = all(".run").map((section) => ({
  section,
  name: section.dataset.run,
  shifts: section.dataset.shifts.split(" "),
  origin: Number(section.dataset.origin),
  cards: all(".card", section).map(cardOf),
}));
const cards = runs.flatMap((run) => run.cards);
const columns = runs[0].shifts.length;
const state = { view: "direction", show: "strips", column: runs[0].origin, sample: 0 };

function cardOf(element, rank) {
  const data = element.dataset;
  const input = element.querySelector(".name input");
  const row = document.createElement("canvas"), strips = element.querySelector(".strips");
  row.hidden = true;
  strips.append(row);
  return {
    element, rank, input, k: Number(data.k), samples: Number(data.samples), saved: data.label,
    sheet: element.querySelector(".sheet"), strips, row,
    cells: element.querySelector(".cells"), header: element.querySelector(".shifts"),
  };
}

// --- pictures: images are cut out of the sheet; rows are samples, columns are shifts --------------

function cut(card, canvas, sample, column, count = 1) {
  const width = card.sheet.naturalWidth / columns, height = card.sheet.naturalHeight / card.samples;
  canvas.width = width * count;
  canvas.height = height;
  canvas.getContext("2d").drawImage(
    card.sheet, column * width, sample * height, width * count, height, 0, 0, width * count, height);
}

function draw(run, card) {
  const strips = state.show === "strips", rows = state.view === "direction";
  const sample = Math.min(state.sample, card.samples - 1);
  card.strips.hidden = card.header.hidden = !strips;
  card.cells.hidden = strips;
  card.sheet.hidden = strips && !rows;
  card.row.hidden = !strips || rows;
  card.strips.style.setProperty("--rows", rows ? card.samples : 1);
  if (strips && rows) return;
  const s = run.shifts[state.column];
  card.row.setAttribute("aria-label", `Direction ${card.k}, sample ${sample + 1}, all s`);
  card.row.setAttribute("role", "img");
  card.cells.setAttribute("aria-label", `Direction ${card.k} at s = ${s}`);
  card.sheet.loading = "eager"; // browsers never load a hidden lazy image
  if (!card.sheet.complete || !card.sheet.naturalWidth) return; // its load event draws it later
  if (strips) return cut(card, card.row, sample, 0, columns);
  const shown = rows ? [...Array(card.samples).keys()] : [sample];
  while (card.cells.children.length < shown.length) card.cells.append(document.createElement("canvas"));
  while (card.cells.children.length > shown.length) card.cells.lastChild.remove();
  shown.forEach((one, i) => cut(card, card.cells.children[i], one, state.column));
}

// Only cards in or near the window are drawn, because there may be hundreds.
const near = new Map();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const [run, card] = owners.get(target);
    if (isIntersecting) near.set(card, run), draw(run, card);
    else near.delete(card);
  }
}, { rootMargin: "600px" });
const owners = new Map();
for (const run of runs) {
  for (const card of run.cards) {
    owners.set(card.element, [run, card]);
    observer.observe(card.element);
    card.sheet.addEventListener("load", () => near.has(card) && draw(run, card));
    if (card.sheet.getAttribute("height") / card.samples > 64) card.element.classList.add("large");
    const link = card.element.querySelector(".animation a"); // set here, so that the file holds the data once
    link.href = card.element.querySelector(".animation img").src;
    link.hidden = false;
  }
}

// --- the state ------------------------------------------------------------------------------------

function show() {
  document.body.classList.toggle("tiles", state.view === "sample" && state.show === "one");
  $("samples").hidden = state.view !== "sample";
  const shifts = [...new Set(runs.map((run) => run.shifts[state.column]))];
  $("s").value = state.column;
  $("s").setAttribute("aria-valuetext", `s = ${shifts.join(", ")}`);
  $("s-value").textContent = shifts.join(" / ");
  for (const run of runs) for (const card of run.cards) {
    // Cards far away only change their shape, which keeps the page's height right.
    if (near.has(card)) draw(run, card);
    else card.strips.hidden = card.header.hidden = state.show !== "strips";
  }
}

function arrange() {
  const key = $("sort").value, least = Number($("least").value);
  const bound = $("least-name").textContent.toLowerCase();
  const words = $("find").value.trim().toLowerCase();
  const value = (card) => Number(card.element.dataset[key] ?? -Infinity);
  const orders = {
    k: (a, b) => a.k - b.k,
    label: (a, b) => !a.input.value - !b.input.value || a.input.value.localeCompare(b.input.value),
  };
  const order = orders[key] ?? ((a, b) => value(b) - value(a));
  let count = 0;
  for (const run of runs) {
    let here = 0;
    for (const card of [...run.cards].sort((a, b) => order(a, b) || a.rank - b.rank)) {
      const data = card.element.dataset;
      const fits = (least === 0 || Number(data[bound] ?? -1) >= least)
        && (!words || String(card.k) === words || card.input.value.toLowerCase().includes(words))
        && !($("twins")?.checked && data.twin !== undefined);
      card.element.hidden = !fits;
      card.element.parentNode.append(card.element);
      here += fits;
    }
    run.section.querySelector(".none").hidden = here > 0;
    count += here;
  }
  $("least-value").textContent = least.toFixed(2);
  $("count").textContent = `${count} of ${cards.length} shown`;
}

function choose(changes) {
  Object.assign(state, changes);
  for (const name of ["view", "show"]) {
    document.querySelector(`input[name="${name}"][value="${state[name]}"]`).checked = true;
  }
  show();
}

// --- moving s -------------------------------------------------------------------------------------

let timer = null, forward = 1;
function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => {
    if (state.column + forward < 0 || state.column + forward >= columns) forward = -forward;
    choose({ column: state.column + forward });
  }, 160) : null;
  $("play").setAttribute("aria-pressed", String(on));
  $("play").textContent = on ? "Pause" : "Play";
  if (on && state.show === "strips") choose({ show: "one" });
}

function move(by) {
  choose({ show: "one", column: Math.max(0, Math.min(columns - 1, state.column + by)) });
}

// --- labels: kept in the browser until they are saved into the run's folder ------------------------

const store = {
  key: (run) => `hdiscovery-labels:${run.name}:${run.section.dataset.fingerprint}`,
  read(run) {
    try { return JSON.parse(localStorage.getItem(this.key(run))) ?? {}; } catch { return {}; }
  },
  write(run) {
    const drafts = run.cards.filter((card) => card.input.value.trim() !== card.saved);
    const entries = drafts.map((card) => [card.k, card.input.value]);
    try { localStorage.setItem(this.key(run), JSON.stringify(Object.fromEntries(entries))); } catch { /* private window */ }
    run.section.querySelector(".state").textContent =
      entries.length ? `${entries.length} changed; not yet saved into the run’s folder` : "";
  },
};

function saveLabels(run) {
  const labels = run.cards.map((card) => [card.k, card.input.value.trim()]).filter(([, text]) => text);
  const text = JSON.stringify(Object.fromEntries(labels), null, 2) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "labels.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

for (const run of runs) {
  const drafts = store.read(run);
  for (const card of run.cards) {
    if (typeof drafts[card.k] === "string") card.input.value = drafts[card.k];
    card.input.addEventListener("input", () => store.write(run));
    card.input.closest("label").hidden = false;
    const words = card.element.querySelector(".label");
    if (words) words.hidden = true; // the text box shows the same label
  }
  store.write(run);
  run.section.querySelector(".labels").hidden = false;
  run.section.querySelector(".save").addEventListener("click", () => saveLabels(run));
}

// --- tools ----------------------------------------------------------------------------------------

function fillSamples() {
  const first = runs[0].cards[0];
  for (let i = 0; i < first.samples; i++) {
    const label = document.createElement("label"), input = document.createElement("input");
    const canvas = document.createElement("canvas");
    Object.assign(input, { type: "radio", name: "sample", value: i, checked: i === 0 });
    input.setAttribute("aria-label", `sample ${i + 1}`);
    input.addEventListener("change", () => choose({ sample: i }));
    label.append(input, canvas);
    $("samples").append(label);
    const thumb = () => cut(first, canvas, i, runs[0].origin);
    first.sheet.complete && first.sheet.naturalWidth ? thumb() : first.sheet.addEventListener("load", thumb);
  }
}

$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["view", "show"]) {
  all(`input[name="${name}"]`).forEach((input) =>
    input.addEventListener("change", () => { if (timer) play(false); choose({ [name]: input.value }); }));
}
$("s").addEventListener("input", () => choose({ show: "one", column: Number($("s").value) }));
$("play").addEventListener("click", () => play(timer === null));
for (const id of ["sort", "least", "find", "twins"]) $(id)?.addEventListener("input", arrange);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, button, summary, a")) return; // they use these keys
  const acts = {
    ArrowLeft: () => move(-1),
    ArrowRight: () => move(1),
    " ": () => play(timer === null),
    v: () => choose({ view: state.view === "direction" ? "sample" : "direction" }),
    o: () => choose({ show: state.show === "strips" ? "one" : "strips" }),
  };
  if (acts[event.key]) event.preventDefault(), acts[event.key]();
});

if (matchMedia("(max-width: 40rem)").matches) $("filters").open = false;
runs[0].cards[0].sheet.loading = "eager";
fillSamples();
$("tools").hidden = $("keys").hidden = false;
arrange();
show();

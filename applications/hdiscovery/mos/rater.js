"use strict";
// Steps: 0 is the introduction, 1 … n the sheets, n + 1 the end. Answers are kept at every change.
const facts = JSON.parse(document.getElementById("facts").textContent);
const CONDITIONS = ["smooth", "consistent", "interpretable"];
const $ = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const sheets = facts.directions.map((code) => ({ code, section: $(`d-${code}`) }));
const key = `hdiscovery-mos:${facts.study}:${facts.rater}`;
const state = { step: 0, question: 0, answers: {}, seconds: {}, started: new Date().toISOString(), ...kept() };

function kept() {
  try { return JSON.parse(localStorage.getItem(key)) ?? {}; } catch { return {}; }
}

function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(state));
  } catch {
    $("unkept").hidden = false;
  }
}

const answersOf = (code) => state.answers[code] ?? {};
const isDone = (code) => CONDITIONS.every((name) => name in answersOf(code));
const numDone = () => facts.directions.filter(isDone).length;

// --- time: counted only while a sheet is visible ---------------------------------------------------

let since = null;
function clock() {
  const sheet = sheets[state.step - 1];
  if (sheet && since !== null) {
    state.seconds[sheet.code] = (state.seconds[sheet.code] ?? 0) + (performance.now() - since) / 1000;
  }
  since = document.hidden ? null : performance.now();
}

// --- what is shown ---------------------------------------------------------------------------------

function show() {
  const { step } = state, n = sheets.length;
  document.querySelector("header").hidden = false;
  $("intro").hidden = step !== 0;
  $("end").hidden = step !== n + 1;
  sheets.forEach(({ code, section }, i) => {
    section.hidden = step !== i + 1;
    const given = answersOf(code);
    all("fieldset", section).forEach((fieldset, question) => {
      const value = given[fieldset.dataset.condition];
      fieldset.classList.toggle("active", question === state.question);
      for (const input of all("input", fieldset)) input.checked = value === (input.value === "yes");
    });
    const mark = CONDITIONS.every((name) => given[name]);
    section.querySelector(".mark").textContent = !isDone(code) ? ""
      : mark ? "All three hold: this sheet counts 1." : "Not all three hold: this sheet counts 0.";
  });
  all("#dots button").forEach((dot, i) => {
    dot.classList.toggle("done", isDone(sheets[i].code));
    dot.toggleAttribute("aria-current", false);
    if (step === i + 1) dot.setAttribute("aria-current", "step");
  });
  const left = n - numDone();
  $("progress").textContent = (step >= 1 && step <= n ? `sheet ${step} of ${n} · ` : "") + `${numDone()} of ${n} answered`;
  $("end-title").textContent = left ? `${left} of ${n} sheets have no answer yet` : "All sheets are answered";
  $("end-text").textContent = left
    ? "Go back to them with the circles above: an empty circle is a sheet without an answer. You can save the answers so far at any time."
    : "Thank you. Please save your answers as a file, and send it to the person who asked you.";
}

function go(step) {
  clock();
  state.step = Math.max(0, Math.min(sheets.length + 1, step));
  const sheet = sheets[state.step - 1];
  const open = sheet ? CONDITIONS.findIndex((name) => !(name in answersOf(sheet.code))) : 0;
  state.question = Math.max(0, open);
  keep();
  show();
  scrollTo(0, 0);
}

function answer(code, name, value) {
  clock();
  state.answers[code] = { ...answersOf(code), [name]: value };
  state.question = Math.min(CONDITIONS.length - 1, CONDITIONS.indexOf(name) + 1);
  keep();
  show();
}

// --- the file --------------------------------------------------------------------------------------

function save() {
  clock();
  keep();
  const answers = facts.directions.filter(isDone).map((code) => ({
    direction: code, ...answersOf(code), seconds: Math.round(10 * (state.seconds[code] ?? 0)) / 10,
  }));
  const content = {
    format: "hdiscovery-mos-answers-1", study: facts.study, rater: facts.rater,
    started: state.started, saved: new Date().toISOString(), answers,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }));
  link.download = `answers-${facts.study}-${facts.rater}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  $("saved").textContent = `Saved as ${link.download} in your downloads folder.`;
}

// --- input -----------------------------------------------------------------------------------------

sheets.forEach(({ code, section }, i) => {
  const dot = document.createElement("button");
  dot.type = "button";
  dot.setAttribute("aria-label", `sheet ${i + 1}`);
  dot.addEventListener("click", () => go(i + 1));
  $("dots").append(dot);
  for (const fieldset of all("fieldset", section)) {
    for (const input of all("input", fieldset)) {
      input.addEventListener("change", () => answer(code, fieldset.dataset.condition, input.value === "yes"));
    }
  }
});
all(".next").forEach((button) => button.addEventListener("click", () => go(state.step + 1)));
all(".back").forEach((button) => button.addEventListener("click", () => go(state.step - 1)));
all(".save").forEach((button) => button.addEventListener("click", save));
all("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
document.addEventListener("visibilitychange", () => { clock(); keep(); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const sheet = sheets[state.step - 1];
  const turn = (by) => {
    state.question = Math.max(0, Math.min(CONDITIONS.length - 1, state.question + by));
    show();
  };
  const acts = {
    ArrowRight: () => go(state.step + 1),
    ArrowLeft: () => go(state.step - 1),
    ...(sheet && {
      1: () => answer(sheet.code, CONDITIONS[state.question], true),
      0: () => answer(sheet.code, CONDITIONS[state.question], false),
      ArrowDown: () => turn(1),
      ArrowUp: () => turn(-1),
    }),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});

$("off").hidden = true;
clock();
show();

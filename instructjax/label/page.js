// The labeling page. Texts of the data reach the page through textContent only; what runs is this file, rate.js and rank.js.
"use strict";

const $ = (id) => document.getElementById(id);
const name = (i) => `Output ${String.fromCharCode(65 + i)}`;
const state = { labeler: "", kind: "", task: null, draft: null, seq: 0, busy: false };

function make(tag, options = {}, ...children) {
  const { text, ...rest } = options;
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(rest)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// --- the server ---

class Refused extends Error {} // the server understood and said no: trying again will not help

async function call(path, body, options = {}) {
  const response = await fetch(`/api/${path}`, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ labeler: state.labeler, ...body }), ...options,
  });
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (response.ok) return answer;
  const error = response.status < 500 ? new Refused(answer.error) : new Error(answer.error);
  error.status = response.status;
  throw error;
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function insist(path, body) { // until the server has it, or refuses it
  for (let pause = 500; ; pause = Math.min(2 * pause, 5000)) {
    try {
      return await call(path, body);
    } catch (error) {
      if (error instanceof Refused) throw error;
      saved("Not saved, trying again", true);
      await wait(pause);
    }
  }
}

function saved(text, late = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("late", late);
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// Every change goes to the server: one request at a time, the newest draft last.
const save = { timer: 0, dirty: false, running: null };

function changed(pause = 0) {
  save.dirty = true;
  saved("Saving…");
  clearTimeout(save.timer);
  save.timer = setTimeout(flush, pause);
}

function flush() {
  clearTimeout(save.timer);
  save.running ??= drain().finally(() => { save.running = null; });
  return save.running;
}

async function drain() {
  while (save.dirty && state.task) {
    save.dirty = false;
    try {
      await insist("draft", { task: state.task.number, draft: state.draft, seq: ++state.seq });
      saved(save.dirty ? "Saving…" : "Saved");
    } catch (error) {
      saved("Not saved", true);
      problem(error.message);
    }
  }
}

addEventListener("pagehide", () => { // a reload within the pause of typing
  if (!save.dirty || !state.task) return;
  save.dirty = false;
  call("draft", { task: state.task.number, draft: state.draft, seq: ++state.seq }, { keepalive: true }).catch(() => {});
});

// --- signing in, and from task to task ---

function only(...ids) {
  for (const id of ["sign-in", "task", "end"]) $(id).hidden = !ids.includes(id);
}

async function start(labeler) {
  state.labeler = labeler;
  try {
    const told = await call("start", {});
    state.kind = told.kind;
    showQuestions();
    $("instructions-text").textContent = told.instructions;
    localStorage.setItem("labeler", labeler);
    $("leave").textContent = `${labeler} · sign out`;
    for (const id of ["leave", "place", "show-instructions"]) $(id).hidden = false;
    problem("");
    const seen = `instructions ${told.kind} ${told.instructions.length}`;
    if (!localStorage.getItem(seen)) {
      localStorage.setItem(seen, "1");
      $("instructions").showModal();
    }
    await next();
  } catch (error) {
    state.labeler = "";
    signIn(labeler, error.message);
  }
}

function signIn(labeler = "", text = "") {
  only("sign-in");
  problem(text);
  for (const id of ["leave", "place", "show-instructions"]) $(id).hidden = true;
  $("labeler").value = labeler;
  $("labeler").focus();
}

async function next() {
  const given = await call("next", {});
  const { progress } = given;
  $("count").textContent = `${progress.answers} of ${progress.wanted} answers, ${progress.mine} yours`;
  $("bar").max = Math.max(progress.wanted, 1);
  $("bar").value = progress.answers;
  saved("");
  state.task = given.task;
  if (!given.task) return end(given);
  const k = given.task.completions.length;
  const blank = state.kind === "demonstration"
    ? { completion: "" }
    : { step: 0, ratings: Array.from({ length: k }, () => ({ overall: 0, flags: [], choices: {}, notes: "" })), ranks: Array(k).fill(0) };
  state.draft = { ...blank, ...given.draft };
  state.seq = given.seq;
  only("task");
  $("prompt").textContent = given.task.prompt;
  $("prompt").scrollTop = 0;
  show();
}

function end({ waiting, progress }) {
  only("end");
  $("end-title").textContent = waiting ? "Nothing for you right now" : "All done";
  $("end-text").textContent = waiting
    ? "What is left is with other labelers. Look again later: what they do not finish comes back."
    : `You answered ${progress.mine} ${progress.mine === 1 ? "prompt" : "prompts"} and skipped ${progress.skipped}. Thank you.`;
  $("again").focus();
}

// --- what is shown of a task ---

function show() {
  const { task, draft } = state;
  const k = task.completions.length;
  const writing = state.kind === "demonstration";
  const ranking = !writing && draft.step >= k;
  $("write").hidden = !writing;
  $("rate").hidden = writing || ranking;
  $("rank").hidden = !ranking;
  $("back").hidden = writing || draft.step === 0;
  $("steps").hidden = writing;
  $("go").replaceChildren(writing || ranking ? "Submit " : "Next ", make("kbd", { text: writing ? "Ctrl Enter" : "Enter" }));
  if (writing) {
    $("completion").value = draft.completion;
    written();
    $("completion").focus();
  } else {
    const words = [...task.completions.map((_, i) => `Rate ${String.fromCharCode(65 + i)}`), "Rank all"];
    $("steps").replaceChildren(...words.map((text, i) => make("li", {
      text, className: i === draft.step ? "now" : i < draft.step ? "done" : "", ...(i === draft.step && { "aria-current": "step" }),
    })));
    if (ranking) showRanks(); else showRating();
    scrollTo(0, 0);
  }
  ready();
}

function ready() { // whether the step is whole
  const { draft, task } = state;
  const whole = state.kind === "demonstration" ? draft.completion.trim() !== ""
    : draft.step < task.completions.length ? rated(draft.ratings[draft.step])
    : draft.ranks.every((rank) => rank > 0);
  $("go").disabled = !whole || state.busy;
  return whole;
}

function written() {
  const words = $("completion").value.trim().split(/\s+/).filter(Boolean).length;
  $("length").textContent = `${words} ${words === 1 ? "word" : "words"}`;
}

// --- going on ---

function answer() {
  if (state.kind === "demonstration") return { completion: state.draft.completion };
  const { ratings, ranks } = state.draft;
  const used = [...new Set(ranks)].sort((a, b) => a - b); // ranks without gaps
  return {
    ratings: ratings.map(given),
    notes: ratings.map(({ notes }) => notes),
    ranks: ranks.map((rank) => used.indexOf(rank) + 1),
  };
}

async function go() {
  if (!state.task || state.busy || !ready()) return;
  if (state.kind !== "demonstration" && state.draft.step < state.task.completions.length) {
    state.draft.step += 1;
    changed();
    return show();
  }
  await leave("answer", { answer: answer() });
}

async function leave(path, body) {
  state.busy = true;
  ready();
  try {
    save.dirty = false;
    await save.running;
    const done = await insist(path, { task: state.task.number, ...body });
    problem("");
    $("says").textContent = done.new ? "Saved." : "Was saved before.";
    state.busy = false;
    await next();
  } catch (error) {
    problem(error.message);
    saved("Not saved", true);
  } finally {
    state.busy = false;
    if (state.task) ready();
  }
}

function back() {
  if (!state.task || state.kind === "demonstration" || state.draft.step === 0) return;
  state.draft.step -= 1;
  changed();
  show();
}

function skip() {
  if (!state.task) return;
  $("reason").value = "";
  $("skip-box").showModal();
  $("reason").focus();
}

function skipSure() {
  $("skip-box").close();
  leave("skip", { reason: $("reason").value.trim() });
}

// --- keys ---

function keys() {
  const rows = [["Enter", "go on (Ctrl Enter in a text)"], ["Esc", "leave a text"], ["b", "back"], ["s", "skip"], ["r", "instructions"], ["?", "this list"]];
  if (state.kind !== "demonstration") rows.push(...ratingKeys());
  $("keys-list").replaceChildren(...rows.flatMap(([key, words]) => [make("dt", {}, make("kbd", { text: key })), make("dd", { text: words })]));
  $("keys").showModal();
}

function rankKey(key) {
  const k = state.task.completions.length;
  const i = Number(document.activeElement?.closest("[data-output]")?.dataset.output ?? -1);
  const cards = [...document.querySelectorAll("[data-output]")].map((one) => Number(one.dataset.output));
  const step = { ArrowUp: -1, k: -1, ArrowDown: 1, j: 1 }[key];
  const turn = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (i < 0) {
    if (step || turn) cardOf(cards[0])?.focus();
    return Boolean(step || turn);
  }
  if (step) place(i, state.draft.ranks[i] + step);
  else if (turn) cardOf(cards[(cards.indexOf(i) + turn + cards.length) % cards.length])?.focus();
  else if (/^[0-9]$/.test(key) && Number(key) <= k) place(i, Number(key), true); // and on to the next that has none
  else return false;
  return true;
}

addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input:not([type=radio]):not([type=checkbox])");
  if (document.querySelector("dialog[open]")) {
    if (event.key === "Enter" && event.target === $("reason")) { event.preventDefault(); skipSure(); }
    return;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); go(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing) {
    if (event.key === "Escape") $("main").focus();
    return;
  }
  const shared = { b: back, s: skip, r: () => state.labeler && $("instructions").showModal(), "?": keys };
  const rating = state.task && !$("rate").hidden, ranking = state.task && !$("rank").hidden;
  if (event.key === "Enter") {
    if (event.target.closest("button, a")) return;
    event.preventDefault();
    if (!event.repeat) go();
  } else if (rating && event.target.type === "radio" && event.key.startsWith("Arrow")) {
    return; // the radio buttons' own keys
  } else if ((rating && rateKey(event.key)) || (ranking && rankKey(event.key))) {
    event.preventDefault();
  } else if (shared[event.key]) {
    event.preventDefault();
    shared[event.key]();
  }
});

// --- start ---

buildQuestions();
$("notes").addEventListener("input", () => { state.draft.ratings[state.draft.step].notes = $("notes").value; changed(400); });
$("completion").addEventListener("input", () => { state.draft.completion = $("completion").value; written(); ready(); changed(400); });
$("sign-in").addEventListener("submit", (event) => { event.preventDefault(); start($("labeler").value.trim()); });
for (const id of ["write", "rate"]) $(id).addEventListener("submit", (event) => event.preventDefault());
$("go").addEventListener("click", go);
$("back").addEventListener("click", back);
$("skip").addEventListener("click", skip);
$("skip-sure").addEventListener("click", skipSure);
$("again").addEventListener("click", () => next().catch((error) => problem(error.message)));
$("show-instructions").addEventListener("click", () => $("instructions").showModal());
$("show-keys").addEventListener("click", keys);
for (const id of ["instructions", "keys", "skip-box"]) {
  $(id).addEventListener("close", () => { if (state.task) (state.kind === "demonstration" ? $("completion") : $("main")).focus({ preventScroll: true }); });
}
$("leave").addEventListener("click", async () => {
  await flush();
  localStorage.removeItem("labeler");
  state.task = null;
  state.labeler = "";
  signIn();
});

const known = localStorage.getItem("labeler");
if (known) start(known); else signIn();

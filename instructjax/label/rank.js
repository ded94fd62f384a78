// Cards in ranks, by key, mouse and finger; page.js has the state and the rest.
"use strict";

// --- ranks: row 0 is the tray of what has none yet ---

function showRanks(focus = -1) {
  const { task, draft } = state;
  const k = task.completions.length;
  const order = [...draft.ranks.keys()];
  $("rows").replaceChildren(...Array.from({ length: k + 1 }, (_, row) => {
    const title = row ? `Rank ${row}${row === 1 ? ", best" : ""}` : "Not ranked yet";
    const mine = order.filter((i) => draft.ranks[i] === row);
    const cards = make("div", { className: "cards" }, ...mine.map(card));
    return make("div", { className: row ? "place" : "place tray", role: "group", "aria-label": title, "data-row": row, hidden: !row && !mine.length },
      make("h3", { text: title }), cards);
  }));
  const to = focus >= 0 ? focus : Math.max(draft.ranks.indexOf(0), 0);
  cardOf(to)?.focus({ preventScroll: focus < 0 });
}

function card(i) {
  const { task, draft } = state;
  const numbers = make("div", { className: "numbers", role: "group", "aria-label": `Rank of ${name(i)}` },
    ...task.completions.map((_, at) => {
      const button = make("button", { type: "button", text: `${at + 1}`, tabIndex: -1, "aria-label": `Rank ${at + 1}`, "aria-pressed": draft.ranks[i] === at + 1 });
      button.addEventListener("click", () => place(i, at + 1));
      return button;
    }));
  const about = draft.ratings[i];
  const bar = make("div", { className: "bar" }, make("strong", { text: name(i) }), make("span", { className: "note", text: `rated ${about.overall}` }), numbers);
  const found = make("div", { className: "output", tabIndex: 0, "data-output": i, role: "group", "aria-roledescription": "output to rank",
    "aria-label": `${name(i)}, ${draft.ranks[i] ? `rank ${draft.ranks[i]}` : "not ranked yet"}`, "aria-describedby": "rank-help" },
    bar, make("div", { className: "text", text: task.completions[i] }));
  bar.addEventListener("pointerdown", (event) => lift(event, i, found));
  return found;
}

const cardOf = (i) => document.querySelector(`[data-output="${i}"]`);

function place(i, row, onward = false) {
  const k = state.task.completions.length;
  if (row < 0 || row > k || state.draft.ranks[i] === row) return;
  const fresh = !state.draft.ranks[i];
  state.draft.ranks[i] = row;
  $("says").textContent = `${name(i)}: ${row ? `rank ${row}` : "not ranked"}`;
  const waiting = state.draft.ranks.indexOf(0);
  showRanks(onward && fresh && waiting >= 0 ? waiting : i);
  if (waiting < 0) $("says").textContent += ". All are ranked.";
  ready();
  changed();
}

function lift(event, i, found) { // mouse, pen and finger alike
  if (event.button !== 0 || event.target.closest("button")) return;
  event.preventDefault();
  found.focus({ preventScroll: true });
  const from = { x: event.clientX, y: event.clientY, box: found.getBoundingClientRect() };
  const bar = event.currentTarget;
  let ghost = null, row = null, x = from.x, y = from.y, frame = 0;
  const over = () => {
    const target = document.elementFromPoint(x, y)?.closest("[data-row]") ?? null;
    if (target === row) return;
    row?.classList.remove("over");
    target?.classList.add("over");
    row = target;
  };
  const scroll = () => { // near an edge of the window
    const edge = 70, step = y < edge ? -10 : y > innerHeight - edge - 60 ? 10 : 0;
    if (step) { scrollBy(0, step); over(); }
    frame = requestAnimationFrame(scroll);
  };
  const move = (event) => {
    ({ clientX: x, clientY: y } = event);
    if (!ghost && Math.hypot(x - from.x, y - from.y) > 5) {
      ghost = found.cloneNode(true);
      ghost.classList.add("ghost");
      ghost.removeAttribute("data-output");
      ghost.style.width = `${from.box.width}px`;
      document.body.append(ghost);
      found.classList.add("lifted");
      frame = requestAnimationFrame(scroll);
    }
    if (!ghost) return;
    ghost.style.left = `${from.box.left + x - from.x}px`;
    ghost.style.top = `${from.box.top + y - from.y}px`;
    over();
  };
  const drop = (event) => {
    cancelAnimationFrame(frame);
    for (const [kind, listener] of listeners) bar.removeEventListener(kind, listener);
    row?.classList.remove("over");
    found.classList.remove("lifted");
    ghost?.remove();
    if (ghost && row && event.type === "pointerup") place(i, Number(row.dataset.row));
  };
  const listeners = [["pointermove", move], ["pointerup", drop], ["pointercancel", drop]];
  bar.setPointerCapture(event.pointerId);
  for (const [kind, listener] of listeners) bar.addEventListener(kind, listener);
}

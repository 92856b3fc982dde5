// The page of `ptl watch`. Events fill `stages`; `draw` shows one stage at one step.
// Text of models and data is only ever set as text: nothing that they wrote is markup here.
"use strict";

const stages = new Map();  // name -> {steps, evals, film, rollouts, left}, by step
let run = null;            // what the server tells of the run
let chosen = null;         // the stage that is shown; null: the one that is under way
let at = Infinity;         // the step that is shown; Infinity follows
let metric = null;
let colour = null;
let playing = null;
let waiting = false;       // whether a drawing is due

// The address keeps no key: by now there is a cookie.
history.replaceState(null, "", location.pathname);

// --- what comes ----------------------------------------------------------------------------------

function of(name) {
  if (!stages.has(name)) {
    stages.set(name, {
      steps: new Map(), evals: [], film: new Map(), rollouts: new Map(),
      left: { step: 0, rollouts: 0 }, total: 0,
    });
  }
  return stages.get(name);
}

function take(stage, line) {
  if (line.left_out) stage.left[line.kind] += line.left_out;
  if (line.total) stage.total = line.total;
  if (line.kind === "step") stage.steps.set(line.step, line);
  if (line.kind === "film") stage.film.set(line.step, line);
  if (line.kind === "rollouts") stage.rollouts.set(line.step, line);
  if (line.kind === "eval") {
    stage.evals = stage.evals.filter((one) => one.when !== line.when
      || Object.keys(one.metrics).join() !== Object.keys(line.metrics).join());
    stage.evals.push(line);
  }
}

const source = new EventSource("events");
const heard = (name, act) => source.addEventListener(name, (event) => {
  $("connection").hidden = true;
  act(JSON.parse(event.data));
  soon();
});
heard("run", (told) => { run = told; $("notice").hidden = true; });
heard("lines", ({ stage, lines }) => lines.forEach((line) => {
  take(of(stage), line);
  if (line.kind === "refused") notice(`${stage}: the replies of step ${line.step} cannot be shown: ${line.why}`);
}));
heard("ready", () => { document.body.dataset.ready = "yes"; });
heard("refused", ({ stage, why }) => notice(stage ? `${stage}: ${why}` : why));
heard("end", (told) => {
  source.close();
  notice(`The run's process has ended. 'ptl watch ${told.run}' shows it again.`);
});
source.onerror = () => { $("connection").hidden = false; };

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
}

function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; if (run) draw(); });
}

// --- drawing -------------------------------------------------------------------------------------

function shown() {
  const busy = run.stages.filter((one) => ["running", "failed", "killed"].includes(one.status));
  const done = run.stages.filter((one) => of(one.name).steps.size || of(one.name).evals.length);
  const name = chosen || (busy[0] || done[done.length - 1] || run.stages[0]).name;
  return run.stages.find((one) => one.name === name);
}

const ended = (about) => !["running", "waiting"].includes(about.status);

function draw() {
  const about = shown();
  const stage = of(about.name);
  const last = Math.max(0, ...stage.steps.keys(), ...stage.film.keys(), ...stage.rollouts.keys());
  const step = Math.min(at, last);
  const parts = [
    () => drawHead(stage, step), () => drawStages(about), () => drawBar(stage, about, step, last),
    () => drawFilm(stage, about, step), () => drawCurve(stage, about, step, last),
    () => drawEvals(stage, about, last), () => drawReplies(stage, about, step),
  ];
  for (const part of parts) {
    // A line that is not as ptl writes it spoils its own part of the page, and no other.
    try { part(); } catch (error) { notice(`A part of ${about.name} cannot be drawn: its watch.jsonl has a line of another form (${error.message}).`); }
  }
  const { left } = stage;
  const missing = [left.step && `${left.step} steps`, left.rollouts && `the replies of ${left.rollouts} steps`];
  $("cut").textContent = missing.some(Boolean)
    ? `To bound the file, ${missing.filter(Boolean).join(" and ")} of this stage were left out.` : "";
}

function drawHead(stage, step) {
  document.title = `${run.id} – ptl watch`;
  $("run").textContent = run.id;
  const failed = run.missed.length;
  const missed = failed && run.status === "finished" ? `, ${failed} expectation${failed > 1 ? "s" : ""} failed` : "";
  $("status").textContent = run.status + missed;
  $("status").className = `pill ${missed ? "failed" : run.status}`;
  const told = [...run.missed, ...run.warnings];
  if (told.join("\n") !== $("warnings").dataset.told) {  // else where one scrolled to is lost
    $("warnings").dataset.told = told.join("\n");
    fill("warnings", ...told.map((text) => make("li", {}, text)));
  }
  $("about").textContent = [
    run.description || run.recipe, `${run.model} on engine ${run.engine}`,
    run.preset && `preset ${run.preset}`, run.error,
  ].filter(Boolean).join(" · ");
  let cost = run.cost;
  const now = stage.steps.get(upTo(stage.steps.keys(), step));
  if (now && now.cost && (run.status === "running" || at !== Infinity)) cost = now.cost;
  const facts = [["tokens", Math.round(cost.tokens).toLocaleString("en")], ["time", duration(cost.seconds)]];
  if (cost.usd !== null && cost.usd !== undefined) facts.push(["cost", `$${cost.usd.toFixed(cost.usd < 1 ? 4 : 2)}`]);
  fill("cost", ...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function drawBar(stage, about, step, last) {
  $("slider").max = Math.max(1, last);
  $("slider").value = step;
  $("slider").disabled = $("play").disabled = !last;
  const total = Math.max(about.steps, stage.total, last);
  $("at").textContent = last ? `step ${step} of ${total}` : ended(about) ? "no steps" : "no steps yet";
  $("live").setAttribute("aria-pressed", at === Infinity);
  $("live").textContent = run.status === "running" ? "follow" : "to the end";
  $("live").disabled = run.status !== "running" && step === last;
}

function drawFilm(stage, about, step) {
  const steps = sorted(stage.film.keys());
  const frames = steps.map((one) => stage.film.get(one));
  $("film-source").textContent = frames.length
    ? `${frames.at(-1).replies.length} prompt${frames.at(-1).replies.length === 1 ? "" : "s"} of ${frames.at(-1).source}, and the likeliest reply after each of these steps`
    : !about.method ? "An evaluation has none." : ended(about) ? "This stage has none (watch: in the recipe)." : "None yet: watch: in the recipe says when.";
  if (!frames.length) { fill("film"); $("film").dataset.view = ""; return; }
  const current = upTo(steps, step);
  // A run that goes on may ask other prompts than it did: each has a row, by its text.
  const rows = new Map();
  frames.forEach((frame, place) => {
    const times = new Map();
    for (const one of frame.replies) {
      times.set(one.prompt, (times.get(one.prompt) || 0) + 1);
      const key = `${times.get(one.prompt)} ${one.prompt}`;
      if (!rows.has(key)) rows.set(key, { prompt: one.prompt, answer: one.answer, cells: [] });
      rows.get(key).cells[place] = one;
    }
  });
  // Roles: on a narrow page the rows are grids, of which no browser tells that they are a table.
  const row = ({ prompt, answer, cells }) => make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" },
    make("span", { class: "prompt" }, prompt),
    answer ? make("small", {}, `expected: ${answer}`) : null),
  ...frames.map((_, place) => {
    const { reply, right, cut } = cells[place] || {};
    const mark = right === true ? "✓" : right === false ? "✗" : "";
    const words = { true: "right", false: "wrong" }[right];
    return make("td", { role: "cell", class: `${words || "open"} ${steps[place] === current ? "now" : ""} ${steps[place] > step ? "later" : ""}` },
      make("span", { class: "mark", role: "img", "aria-label": words }, mark),
      reply || make("em", {}, cells[place] ? "(nothing)" : "(not asked)"), cut ? make("em", {}, " … cut") : null);
  }));
  const view = `${about.name} ${current} ${$("film").clientWidth}`;
  const moved = $("film").dataset.view !== view;
  fill("film", make("table", { role: "table" }, make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "prompt"),
    ...steps.map((one) => {
      const button = make("button", { "aria-label": `step ${one}` }, one === 0 ? "start" : String(one));
      button.onclick = () => { at = one; stop(); soon(); };
      return make("th", { scope: "col", role: "columnheader", class: one === current ? "now" : "" }, button);
    }))), make("tbody", { role: "rowgroup" }, ...[...rows.values()].map(row))));
  $("film").style.setProperty("--frames", frames.length);
  $("film").dataset.view = view;
  const cell = $("film").querySelector("th.now");
  if (moved && cell) {
    $("film").scrollLeft = cell.offsetLeft - $("film").clientWidth / 2 + cell.offsetWidth / 2;
  }
}

const FIRST = ["reward/mean", "train/loss", "kl", "rewards/accuracies", "groups/zero_variance_share", "policy/entropy", "policy/kl_reference", "completions/clipped_ratio", "completions/mean_length"];

function drawCurve(stage, about, step, last) {
  const names = new Set([...stage.steps.values()].flatMap((line) => Object.keys(line.metrics)));
  const order = [...FIRST.filter((name) => names.has(name)), ...[...names].filter((name) => !FIRST.includes(name)).sort()];
  const name = names.has(metric) ? metric : order[0];
  if (order.join() !== $("metric").dataset.names) {
    fill("metric", ...order.map((one) => make("option", { value: one }, one)));
    $("metric").dataset.names = order.join();
  }
  $("metric").hidden = !name;
  if (!name) { fill("curve", make("p", { class: "hint" }, ended(about) ? "This stage took no step." : "No step yet.")); return; }
  $("metric").value = name;
  const values = sorted(stage.steps.keys()).map((s) => [s, stage.steps.get(s).metrics[name]])
    .filter(([, v]) => typeof v === "number");
  const smooth = [];
  let mean = null;
  const weight = values.length >= 100 ? 0.8 : 0.5;  // a crash is to look like one
  for (const [s, v] of values) {
    mean = mean === null ? v : weight * mean + (1 - weight) * v;
    smooth.push([s, mean]);
  }
  const all = values.map(([, v]) => v);
  const none = [...stage.steps.values()].filter((line) => line.metrics[name] === null).length;
  if (!all.length) { fill("curve", make("p", { class: "hint" }, `${name} was no number (NaN or infinite) at any step.`)); return; }
  const raw = values.length >= 10;
  const drawing = chart({
    width: $("curve").clientWidth,
    lines: raw ? [{ values, kind: "raw" }, { values: smooth, kind: "smooth" }] : [{ values, kind: "smooth" }],
    low: Math.min(...all), high: Math.max(...all), last: Math.max(about.steps, stage.total, last), step,
  });
  const here = stage.steps.get(upTo(stage.steps.keys(), step));
  const value = here ? number(here.metrics[name]) : "–";
  drawing.setAttribute("aria-label", `${name} over steps; ${value} at step ${step}`);
  fill("curve", make("p", { class: "now-value" }, `${value} at step ${step}`), drawing,
    none ? make("p", { class: "hint" }, `At ${none} of ${stage.steps.size} steps it was no number (NaN or infinite).`) : null);
}

function drawEvals(stage, about, last) {
  const found = new Map();
  for (const line of stage.evals) {
    for (const [name, estimate] of Object.entries(line.metrics)) {
      if (!found.has(name)) found.set(name, []);
      if (typeof estimate.value === "number") found.get(name).push({ ...estimate, at: line.step, when: ["before", "after"].includes(line.when) ? line.when : "" });
    }
  }
  const total = Math.max(about.steps, stage.total, last);
  if (!found.size) { fill("evals", make("p", { class: "hint" }, ended(about) ? "This stage measured nothing." : "Nothing was measured yet.")); return; }
  // As many side by side as find room.
  const columns = Math.min(found.size, Math.max(1, Math.floor($("evals").clientWidth / 215)));
  const wide = Math.floor(($("evals").clientWidth - 12 * (columns - 1)) / columns);
  fill("evals", ...[...found].map(([name, points]) => {
    if (!points.length) {
      return make("figure", {}, make("figcaption", {}, name), make("p", { class: "hint" }, "It came to no number (NaN or infinite)."));
    }
    points.sort((a, b) => a.at - b.at);
    if (!total) points = [{ ...points[points.length - 1], when: "" }];  // nothing was trained between them
    const ends = points.flatMap((one) => [one.low, one.value, one.high]).filter((one) => typeof one === "number");
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const drawing = chart({
      width: wide, points, low, high, last: total, percent: points[0].share,
      lines: [{ values: points.map((one) => [one.at, one.value]), kind: "between" }],
    });
    drawing.setAttribute("aria-label", `${name}: ${points.map((one) => `${one.when} ${number(one.value)}`).join(", ")}`);
    return make("figure", {}, make("figcaption", {}, name, make("small", {}, ` n=${points[0].count}`)), drawing);
  }));
}

// --- replies, and the colours of their tokens ----------------------------------------------------

function drawReplies(stage, about, step) {
  const from = upTo(stage.rollouts.keys(), step) ?? sorted(stage.rollouts.keys())[0];
  const line = stage.rollouts.get(from);
  $("rollouts-title").textContent = line && line.rollouts.every((one) => !one.ended) ? "Examples" : "Replies";
  $("rollouts-step").textContent = line ? `of step ${from}${line.of ? `, ${line.rollouts.length} of ${line.of}` : ""}` : "";
  const names = line ? [...new Set(line.rollouts.flatMap((one) => Object.keys(one.numbers)))] : [];
  const order = [...Object.keys(COLOURS).filter((one) => names.includes(one)), ...names.filter((one) => !COLOURS[one])];
  if (order.join() !== $("colour").dataset.names) {
    fill("colour", ...order.map((one) => make("option", { value: one }, (COLOURS[one] || [one])[0])));
    $("colour").dataset.names = order.join();
  }
  const by = order.includes(colour) ? colour : order[0];
  $("colour").parentElement.hidden = !by;
  const key = `${from} ${by} ${about.name} ${ended(about)}`;
  if ($("rollouts").dataset.key === key) return;  // focus stays where it is
  $("rollouts").dataset.key = key;
  if (!line) {
    fill("rollouts", make("p", { class: "hint" }, !about.method ? "An evaluation trains on none." : ended(about)
      ? "This stage has shown none: its method hands none over." : "None was shown yet."));
    fill("legend");
    return;
  }
  if (by) $("colour").value = by;
  const values = line.rollouts.flatMap((one) => one.numbers[by] || []).filter((v) => v !== null).map(Math.abs);
  values.sort((a, b) => a - b);
  // One outlier takes not all of the colour, and differences that mean nothing get none.
  const most = Math.max(values[Math.floor(0.95 * (values.length - 1))] || 1, LEAST[by] || 0);
  const nothing = by === "advantage" && values.length && !values.some(Boolean);
  fill("legend", ...nothing ? [make("span", {}, "Nothing was pushed: all replies of a prompt got the same reward.")] : legend(by, most));
  fill("rollouts", ...line.rollouts.map((one) => reply(one, by, most)));
}

function tip(element) {
  const box = $("tip");
  if (!element || !element.told) { box.hidden = true; return; }
  box.textContent = element.told;
  box.hidden = false;
  const { left, bottom, top } = element.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${bottom + box.offsetHeight + 12 > innerHeight ? top - box.offsetHeight - 6 : bottom + 6}px`;
}

new ResizeObserver(soon).observe(document.body);

for (const event of ["mouseover", "focusin"]) $("rollouts").addEventListener(event, (e) => tip(e.target));
for (const event of ["mouseout", "focusout"]) $("rollouts").addEventListener(event, () => tip(null));
$("rollouts").addEventListener("keydown", (event) => {
  const move = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = move && event.target[move];
  if (event.key === "Escape") tip(null);
  if (!next || !next.told) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
});

// --- the bar -------------------------------------------------------------------------------------

function stop() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "▶";
  $("play").setAttribute("aria-label", "Play");
}

$("slider").oninput = () => { stop(); at = Number($("slider").value); soon(); };
$("live").onclick = () => { stop(); at = Infinity; if (run && run.status === "running") chosen = null; soon(); };
$("metric").onchange = () => { metric = $("metric").value; soon(); };
$("colour").onchange = () => { colour = $("colour").value; soon(); };
$("play").onclick = () => {
  if (playing) { stop(); return; }
  const last = Number($("slider").max);
  if (at >= last) at = 0;
  $("play").textContent = "❚❚";
  $("play").setAttribute("aria-label", "Pause");
  const start = performance.now() - 8000 * at / last;  // all of a stage takes eight seconds
  playing = setInterval(() => {
    at = Math.round(last * (performance.now() - start) / 8000);
    if (at >= last) { at = last; stop(); }
    soon();
  }, 60);
};

// What the page is put together from: elements, numbers, charts. Text is only ever set as text.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...inside) {
  const svg = ["svg", "g", "path", "line", "circle", "text"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...inside.filter((one) => one !== null && one !== undefined));
  return made;
}

const fill = (id, ...inside) => $(id).replaceChildren(...inside.filter((one) => one !== null));
const sorted = (numbers) => [...numbers].sort((a, b) => a - b);
const upTo = (numbers, step) => sorted(numbers).filter((one) => one <= step).pop();

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  const whole = Math.round(seconds || 0);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${String(whole % 60).padStart(2, "0")} s` : `${whole} s`;
}

// --- a drawing of series over steps: lines, points with their intervals, and where we are -------

// Bounds, and a few values between them, that a person would choose.
function scale(low, high) {
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].find((one) => one * power >= rough) * power;
  const first = Math.floor(low / size + 1e-6);
  const count = Math.ceil(high / size - 1e-6) - first;
  return Array.from({ length: count + 1 }, (_, place) => (first + place) * size);
}

function chart({ lines = [], points = [], low, high, last, step, percent, width }) {
  const [height, left, right, top, bottom] = [200, 52, 14, 12, 24];
  const marks = scale(low, high);
  const [least, most] = [marks[0], marks[marks.length - 1]];
  const x = (value) => left + (width - left - right) * (last ? value / last : 0.5);
  const y = (value) => top + (height - top - bottom) * (most - value) / (most - least);
  const say = (value) => (percent ? `${Number((100 * value).toPrecision(3))}%` : number(value));
  const drawing = make("svg", { width, height, role: "img" });
  for (const value of marks) {
    drawing.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      make("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, say(value)));
  }
  if (last) drawing.append(make("text", { x: left, y: height - 5 }, "start"),
    make("text", { x: width - right, y: height - 5, "text-anchor": "end" }, `step ${last}`));
  for (const { values, kind } of lines) {
    const d = values.map(([s, v], place) => `${place ? "L" : "M"}${x(s).toFixed(1)} ${y(v).toFixed(1)}`);
    drawing.append(make("path", { class: `curve ${kind}`, d: d.join("") }));
  }
  if (step !== undefined) {
    drawing.append(make("line", { class: "cursor", x1: x(step), x2: x(step), y1: top, y2: height - bottom }));
  }
  for (const { at, value, low: from, high: to, when } of points) {
    const [cx, cy] = [x(at), y(value)];
    const wide = typeof from === "number" && typeof to === "number";  // one record has no interval
    drawing.append(!wide ? "" :
      make("path", { class: "whisker", d: `M${cx} ${y(from)}V${y(to)}M${cx - 4} ${y(from)}h8M${cx - 4} ${y(to)}h8` }),
      make("circle", { class: "point", cx, cy, r: 4.5 }));
    const side = at === 0 ? { x: cx + 9, "text-anchor": "start" } : { x: cx - 9, "text-anchor": "end" };
    if (when || !last) drawing.append(make("text", { class: "value", y: cy + 4, ...side }, `${when} ${say(value)}`.trim()));
  }
  return drawing;
}

// --- a reply, its tokens coloured by a number -----------------------------------------------------

const COLOURS = {
  advantage: ["advantage", "pushed down", "pushed up"],
  log_ratio: ["log-ratio to the reference", "rarer than it was", "likelier than it was"],
  reverse_kl: ["reverse KL to the teacher", "the teacher likes it better", "the teacher likes it less"],
  logprob: ["log-probability", "unlikely", "certain"],
};

const LEAST = { logprob: 1, log_ratio: 0.1, reverse_kl: 0.1 };
/* Nats that full colour stands for at least. */

function legend(by, most) {
  if (!by) return [];
  const [, low, high] = COLOURS[by] || ["", "below 0", "above 0"];
  const swatches = (by === "logprob" ? [-1, -0.6, -0.3, 0] : [-1, -0.5, 0, 0.5, 1]).map((part) => paint(make("span", { class: "swatch" }), part));
  return [make("span", {}, `${number(-most)} ${low}`), ...swatches,
    make("span", {}, by === "logprob" ? `0 ${high}` : `${high} ${number(most)}`)];
}

function paint(element, part) {
  const strength = Math.min(1, Math.abs(part));
  if (strength < 0.02) return element;
  element.classList.add(part > 0 ? "up" : "down");
  element.style.setProperty("--strength", `${Math.round(12 + 62 * strength)}%`);
  return element;
}

function reply(one, by, most) {
  const facts = [
    one.label && ["", one.label],
    one.answer && ["expected", one.answer],
    one.reward !== null && ["reward", number(one.reward)],
    one.advantage !== null && ["advantage", number(one.advantage)],
    ["length", `${one.length} token${one.length === 1 ? "" : "s"}`],
    one.ended && [one.ended === "stop" ? "ended by" : "cut by", one.ended === "stop" ? "itself" : one.ended],
  ].filter(Boolean);
  const numbers = one.numbers[by] || [];
  const tokens = one.tokens.map((text, place) => {
    const blank = text.replaceAll("\n", "⏎\n");
    const value = numbers[place];
    const made = make("span", { class: "token", tabindex: place ? "-1" : "0" }, blank);
    made.told = [JSON.stringify(text), ...Object.entries(one.numbers).map(([name, all]) =>
      `${(COLOURS[name] || [name])[0]} ${number(all[place])}`)].join("\n");
    if (value === null || value === undefined) made.classList.add("none");
    else paint(made, value / most);
    return made;
  });
  const asked = one.prompt.replace(/<\|[^|>]*\|>(system|user|assistant|tool)?/g, " ").replace(/\s+/g, " ").trim();
  const rest = one.length - one.tokens.length;
  return make("article", { class: one.ended && one.ended !== "stop" ? "reply cut" : "reply" },
    make("details", {}, make("summary", {}, asked || "prompt"), make("pre", {}, one.prompt)),
    make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("p", { class: "tokens", "aria-label": "Tokens; arrow keys go through them" }, ...tokens,
      rest > 0 ? make("em", {}, one.secret ? "(left out: it holds a secret)" : ` … ${rest} more token${rest === 1 ? "" : "s"}`) : null));
}

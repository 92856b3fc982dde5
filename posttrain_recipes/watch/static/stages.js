// The graph of stages: a box each, arrows from what it needs.
"use strict";

function drawStages(about) {
  const depth = new Map();
  for (const one of run.stages) {
    depth.set(one.name, 1 + Math.max(-1, ...one.needs.map((name) => depth.get(name) ?? -1)));
  }
  const rows = new Map();
  // The variants of a matrix are told apart by what follows the @ of their names.
  const label = (one) => one.name.split("@").slice(1).join("@");
  const longest = Math.max(...run.stages.map((one) => label(one).length));
  const [wide, high, gapX, gapY] = [Math.min(330, Math.max(176, 90 + 7 * longest)), 58, 44, 14];
  const place = new Map(run.stages.map((one) => {
    const column = depth.get(one.name);
    const row = rows.get(column) || 0;
    rows.set(column, row + 1);
    return [one.name, { x: column * (wide + gapX), y: row * (high + gapY) }];
  }));
  const width = (1 + Math.max(...depth.values())) * (wide + gapX) - gapX;
  const height = Math.max(...rows.values()) * (high + gapY) - gapY;
  const arrows = make("svg", { width, height, "aria-hidden": "true" });
  const boxes = run.stages.map((one) => {
    const { x, y } = place.get(one.name);
    for (const name of one.needs.filter((other) => place.has(other))) {
      const from = place.get(name);
      const [x1, y1, x2, y2] = [from.x + wide, from.y + high / 2, x - 2, y + high / 2];
      const bend = (x1 + x2) / 2;
      arrows.append(
        make("path", { class: one.from.includes(name) ? "arrow" : "arrow data",
          d: `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}` }),
        make("path", { class: "tip", d: `M${x2 + 2} ${y2}l-7 -4v8z` }));
    }
    const there = of(one.name);
    const step = Math.max(0, ...there.steps.keys());
    const total = one.steps || there.total;
    const far = one.status === "running" && total ? `${step} of ${total} steps` : one.status;
    const box = make("button", { class: `stage ${one.status}`, "aria-pressed": one === about,
      title: [one.name, one.error, one.took, ...one.notes].filter(Boolean).join("\n") },
    make("b", {}, label(one) ? one.name.split("@")[0] : one.name),
    make("span", {}, label(one) || one.method || "evaluation"), make("i", {}, far));
    box.style.left = `${x}px`;
    box.style.top = `${y}px`;
    box.style.width = `${wide}px`;
    box.onclick = () => { chosen = one.name; at = Infinity; stop(); soon(); };
    return box;
  });
  const focused = [...$("stages").querySelectorAll("button")].indexOf(document.activeElement);
  fill("stages", arrows, ...boxes);
  $("stages").style.width = `${width}px`;
  $("stages").style.height = `${height}px`;
  if (focused >= 0 && boxes[focused]) boxes[focused].focus({ preventScroll: true });
  if ($("stages").dataset.shown !== about.name) {
    $("stages").dataset.shown = about.name;
    const nav = $("stages").parentElement;
    const { x, y } = place.get(about.name);
    nav.scrollTo(x + wide / 2 - nav.clientWidth / 2, y + high / 2 - nav.clientHeight / 2);
  }
}

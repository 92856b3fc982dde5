"""Follow one real optimizer step, tensor by tensor, and list the files that it runs through.

    python tools/one_step.py                 fill the blocks of docs/one-step.md
    python tools/one_step.py --files grpo    the files of the package that a step of it ran

A step is all that `Method.train` does of a stage with one step. The recipes are those of the page.
No part of it is what the runner does with what it is told (`running/`, `tracking/`, `store.py`),
how its waiter looks whether the engine lives (`engines.py`), and the engine, a process of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import posttrain_recipes as ptl
from posttrain_recipes import registry
from posttrain_recipes.context import StageContext
from posttrain_recipes.training.rl.rollout import Group

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "one-step.md"
PACKAGE = str(Path(ptl.__file__).resolve().parent) + os.sep
ABOVE = ("running/", "tracking/", "store.py", "engines.py")
_BLOCK = re.compile(r"(<!-- step: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass
class Traced:
    """What one step was seen to do."""

    renderer: Any = None
    data: list[Any] = field(default_factory=list)
    loss: tuple[Any, ...] = ()
    output: Any = None
    after: Any = None
    adam: Any = None
    updated: Any = None
    groups: list[tuple[Group, list[float], list[float], int]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


def recipe(method: str) -> str:
    """The recipe of a method on the page."""
    for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if f"use: {method}," in text:
            return str(text)
    raise SystemExit(f"{PAGE.name} has no recipe with {method}")


class _Client:
    """A training client that keeps what goes through it."""

    def __init__(self, client: Any, traced: Traced) -> None:
        self._client, self._traced = client, traced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def forward_backward(self, data: list[Any], *loss: Any) -> Any:
        """Submit it, and keep it."""
        future = self._client.forward_backward(data, *loss)
        self._traced.data += data
        self._traced.loss = loss
        self._traced.output = (self._traced.output or []) + [future]
        return future

    def optim_step(self, adam: Any) -> Any:
        """Submit it, keep it, and look at the same data once more."""
        self._traced.adam = adam
        self._traced.updated = self._client.optim_step(adam)
        if self._traced.groups or self._traced.loss[0] == "cross_entropy":
            self._traced.after = self._client.forward(self._traced.data, *self._traced.loss)
        return self._traced.updated


def trace(method: str) -> Traced:
    """Run the method's recipe for its one step."""
    traced = Traced()
    cls = registry.load().get("method", method).cls
    train, client, weigh = cls.train, StageContext.training_client, Group.weigh  # type: ignore[attr-defined]

    def traced_train(self: Any, stage: StageContext) -> Any:
        traced.renderer = stage.renderer
        with _files(traced.files):
            return train(self, stage)

    def traced_weigh(group: Group, A: Any, w: Any, groups: int) -> None:
        weigh(group, A, w, groups)
        traced.groups.append((group, list(A), list(w), groups))

    with tempfile.TemporaryDirectory() as home, _patched(
        (cls, "train", traced_train),
        (StageContext, "training_client", lambda stage: _Client(client(stage), traced)),
        (Group, "weigh", traced_weigh),
    ):  # fmt: skip
        file = Path(home) / "one_step.yaml"
        text = recipe(method).replace("recipes/data", str(ROOT / "recipes" / "data"))
        file.write_text(text, encoding="utf-8")
        ptl.run(file, home=Path(home) / "home")
        traced.output = [future.result() for future in traced.output]
        traced.updated = traced.updated.result()
        traced.after = traced.after.result() if traced.after else None
    return traced


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


@contextmanager
def _files(found: set[str]) -> Iterator[None]:
    """Note the files of the package in which a function runs, on whatever thread."""
    depth: dict[int, int] = {}

    def look(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
            return
        file = code.co_filename[len(PACKAGE) :]
        me = threading.get_ident()
        if file.startswith(ABOVE):
            depth[me] = depth.get(me, 0) + {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and depth.get(me, 0) <= 0:
            found.add(file)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


# --- the page ------------------------------------------------------------------------------------


def blocks() -> dict[str, str]:
    """Every block of the page, by its name."""
    rl, sft = trace("grpo"), trace("sft")
    made: dict[str, Callable[[], str]] = {
        "grpo.prompt": lambda: _prompt(rl),
        "grpo.group": lambda: _group(rl),
        "grpo.datum": lambda: _datum(rl, ("logprobs", "advantages")),
        "grpo.loss": lambda: _policy_loss(rl),
        "grpo.update": lambda: _policy_update(rl),
        "grpo.files": lambda: _listed(rl.files),
        "sft.datum": lambda: _datum(sft, ("weights",)),
        "sft.loss": lambda: _cross_entropy(sft),
        "sft.files": lambda: _listed(sft.files),
    }
    return {name: make() for name, make in made.items()}


def filled(text: str, found: dict[str, str]) -> str:
    """The page with its blocks as they are found."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{found[m[2]]}\n\n{m[3]}", text)


def _prompt(rl: Traced) -> str:
    group = rl.groups[0][0]
    segment = group.rollouts[0].segments[0]
    tokens = segment.tokens[: segment.sampled.index(True)]
    return f"```text\n{rl.renderer.decode(tokens)!r}\n{tokens}\n```\n\nP = {len(tokens)} tokens."


def _group(rl: Traced) -> str:
    rows = ["| i | y_i | log q, its sum | r_i | A_i | w_i |", "|---|---|---:|---:|---:|---:|"]
    for number, (group, A, w, groups) in enumerate(rl.groups):
        if number:
            rows.append("| | | | | | |")
        for i, rollout in enumerate(group.rollouts):
            segment = rollout.segments[0]
            said = rl.renderer.decode(
                [t for t, own in zip(segment.tokens, segment.sampled, strict=True) if own]
            )
            logq = sum(segment.own(segment.logprobs))
            rows.append(
                f"| {i + 1} | `{said}` | {logq:.4f} | {rollout.reward:.1f} | {A[i]:.4f} | "
                f"{w[i] / groups:.5f} |"
            )
    return "\n".join(rows)


def _datum(traced: Traced, columns: tuple[str, ...]) -> str:
    datum = traced.data[0]
    inputs, targets = datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].tolist()
    rows = [
        f"| t | input | target | {' | '.join(columns)} |",
        f"|---|---|---|{'---:|' * len(columns)}",
    ]
    learned = [t for t in range(len(inputs)) if any(_column(datum, c)[t] for c in columns)]
    for t, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        if t < learned[0] - 2:
            continue
        values = (f"{_column(datum, name)[t]:.5f}" for name in columns)
        word = [f"`{traced.renderer.decode([i])!r}` {i}".replace("|", "\\|") for i in (x, y)]
        rows.append(f"| {t} | {word[0]} | {word[1]} | {' | '.join(values)} |")
    return "\n".join(rows)


def _column(datum: Any, name: str) -> list[float]:
    return list(datum.loss_fn_inputs[name].tolist())


def _logp(outputs: list[Any]) -> list[np.ndarray]:
    return [np.array(o["logprobs"].data) for out in outputs for o in out.loss_fn_outputs]


def _policy_loss(rl: Traced) -> str:
    low, high = 0.8, 1.2
    total, ratios = 0.0, []
    for datum, logp in zip(rl.data, _logp(rl.output), strict=True):
        logq = np.array(datum.loss_fn_inputs["logprobs"].tolist())
        wA = np.array(datum.loss_fn_inputs["advantages"].tolist())
        rho = np.exp(logp - logq)[wA != 0]
        ratios += rho.tolist()
        total -= np.minimum(rho * wA[wA != 0], np.clip(rho, low, high) * wA[wA != 0]).sum()
    reported = sum(out.metrics["loss:sum"] for out in rl.output)
    return (
        f"{len(rl.data)} of {sum(len(g.rollouts) for g, *_ in rl.groups)} completions have an "
        f"advantage. Over their {len(ratios)} own tokens rho lies between {min(ratios):.4f} and "
        f"{max(ratios):.4f}; the formula gives {abs(total):.4f}, the engine {abs(reported):.4f}."
    )


def _policy_update(rl: Traced) -> str:
    up: list[float] = []
    down: list[float] = []
    for datum, before, after in zip(rl.data, _logp(rl.output), _logp([rl.after]), strict=True):
        wA = np.array(datum.loss_fn_inputs["advantages"].tolist())
        moved = (after - before)[wA != 0].sum()
        (up if wA.sum() > 0 else down).append(float(moved))
    return (
        f"The gradient's norm is {rl.updated.metrics['grad_norm:mean']:.4f}, the learning rate "
        f"{rl.adam.learning_rate:g}. After it, log p of the completions with a positive advantage "
        f"has changed by {np.mean(up):+.3f} on average, that of the others by {np.mean(down):+.3f}."
    )


def _cross_entropy(sft: Traced) -> str:
    learned = sum((np.array(d.loss_fn_inputs["weights"].tolist()) > 0).sum() for d in sft.data)
    total = 0.0
    for datum, logp in zip(sft.data, _logp(sft.output), strict=True):
        total -= float((np.array(datum.loss_fn_inputs["weights"].tolist()) * logp).sum())
    return (
        f"{len(sft.data)} examples, {learned} learned tokens: each weighs 1/{learned} = "
        f"{1 / learned:.5f}. The formula gives {total:.4f}, the engine reports "
        f"{sft.output[0].metrics['loss:sum']:.4f}. The gradient's norm is "
        f"{sft.updated.metrics['grad_norm:mean']:.4f}; after a step at "
        f"{sft.adam.learning_rate:g} the loss of the same examples is "
        f"{sft.after.metrics['loss:sum']:.4f}."
    )


def _listed(files: set[str]) -> str:
    return f"{len(files)} files:\n\n```text\n" + "\n".join(sorted(files)) + "\n```"


def main() -> None:
    """Fill the page, or list files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", metavar="METHOD", help="list the files of one step, and stop")
    args = parser.parse_args()
    if args.files:
        print(_listed(trace(args.files).files))
        return
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

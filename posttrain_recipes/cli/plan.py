"""`ptl plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import (
    home_option,
    json_option,
    recipe_options,
    scope_options,
)
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.planning import costs, film, memory, pricing, rates, reuse
from posttrain_recipes.planning.plans import BASE, Plan
from posttrain_recipes.planning.reuse import Scope, decisions
from posttrain_recipes.store import Estimated, RunRecord, Store, default_home


@click.command()
@recipe_options
@scope_options
@click.option("--tokens", is_flag=True, help="Count the tokens of every record.")
@home_option
@json_option
def plan(
    recipe: Path,
    preset: str | None,
    overrides: tuple[str, ...],
    scope: Scope,
    tokens: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show what running RECIPE would do: stages, hand-offs, and what is reused or run, and why."""
    planned = api.plan(recipe, preset=preset, overrides=overrides, home=home)
    where = default_home(home)
    prices = pricing.load(where)
    runs, unreadable = Store(where).listed()
    for one in unreadable:
        click.echo(f"warning: {one}; nothing of it is reused ({one.hint})", err=True)
    remade = reuse.remade(planned, runs)
    stages, ahead = _stages(planned, where, scope, prices, tokens, runs)
    if as_json:
        data = {
            "recipe": planned.name,
            "preset": planned.preset,
            "model": planned.model,
            "engine": planned.engine.name,
            "fingerprint": planned.fingerprint,
            "pins": planned.pins,
            "remade": remade,
            "stages": stages,
            "on_end": planned.on_end and planned.on_end.label,
            "trackers": [tracker.name for tracker in planned.trackers],
            "estimate": asdict(ahead),
            "evals_beside": planned.engine.beside,
            "prices": prices.note if planned.engine.billed else None,
            "unpriced": costs.unpriced(planned, prices),
        }
        answer(data)
        return
    preset_note = f", preset {planned.preset}" if planned.preset else ""
    click.echo(f"{planned.name}: {planned.model} on engine {planned.engine.name}{preset_note}")
    if planned.description:
        click.echo(f"  {planned.description}")
    for pin in planned.pins:
        click.echo(f"  {pin}")
    if remade:
        click.echo(f"  {remade}")
    for same, block in _alike(stages):
        click.echo()
        for number, stage in same:
            click.echo(f"{number}. {stage['name']}: {stage['action']} ({stage['why']})")
        if len(same) > 1:
            click.echo(f"   each of these {len(same)}:")
        for text in block:
            click.echo(f"   {text}")
    if planned.on_end is not None:
        click.echo(f"\non_end: {planned.on_end.label} is told how it ended")
    if planned.trackers:
        names = ", ".join(tracker.name for tracker in planned.trackers)
        click.echo(f"\ntrackers: {names}, beside MLflow")
    if any(stage["ahead"] for stage in stages):
        click.echo(f"\nahead: {costs.describe(ahead, planned.engine.billed)}")
        if beside := costs.beside(planned):
            click.echo(f"       {beside}")
        if planned.engine.billed:
            click.echo(f"       {prices.note}")
            for text in costs.unpriced(planned, prices):
                click.echo(f"       {text}")


def _block(stage: Mapping[str, Any]) -> list[str]:
    """What is said of a stage below its name."""
    said = [("from", stage["from"])]
    if stage["method"]:
        said.append(("method", stage["method"]))
    if stage["method"] and stage["data"]:
        said.append(("data", f"{stage['data']} as {stage['records']} records"))
    said += [("reward", name) for name in stage["rewards"]]
    said += [("eval", name) for name in stage["evals"]]
    said += [(name, stage[name]) for name in ("keep", "stop")]
    if stage["measures"]:
        said.append(("new", f"{', '.join(stage['measures'])}: to be measured"))
    said += [(name, stage[name]) for name in ("memory", "leaves", "ahead")]
    if stage["watch"]:
        said.append(("watch", f"{stage['watch']}, beside that"))
    return [f"{name:<7} {text}" for name, text in said if text]


def _alike(
    stages: Sequence[Mapping[str, Any]],
) -> list[tuple[list[tuple[int, Mapping[str, Any]]], list[str]]]:
    """The stages with their numbers, in order, and what is said of them; those of one stage's
    variants of which the same is said, but for the variant that they go on from, are together."""
    found: dict[tuple[str, ...], tuple[list[tuple[int, Mapping[str, Any]]], list[str]]] = {}
    for number, stage in enumerate(stages, 1):
        source, _, variant = stage["name"].partition("@")
        said = _block(stage)
        alike = [text.replace(f"@{variant}", "@(the same)") for text in said] if variant else said
        key = (source if variant else stage["name"], *alike)
        same, _ = found.get(key, ([], said))
        same.append((number, stage))
        found[key] = same, said if len(same) == 1 else alike
    return list(found.values())


def _stages(
    planned: Plan,
    home: Path,
    scope: Scope,
    prices: pricing.Prices,
    whole: bool,
    runs: Sequence[RunRecord],
) -> tuple[list[dict[str, Any]], Estimated]:
    """What becomes of each stage, and what is ahead of them all."""
    scope.check(planned)
    found, ahead = [], []
    estimator = costs.Estimator(planned, prices, runs, whole)
    decided = list(decisions(planned, scope, runs, home))
    for stage, decision, estimate in estimator.stages(decided):
        if estimate:
            ahead.append(estimate)
        found.append(
            {
                "name": stage.name,
                "action": decision.action,
                "why": decision.why,
                "from": f"{stage.start} ({stage.model})" if stage.start == BASE else stage.start,
                "method": stage.method.name if stage.method else None,
                "auto": {
                    name: {"value": rates.number(stage.inputs, name), "by": why}
                    for name, why in stage.auto.items()
                },
                "data": stage.data.label if stage.data else None,
                "records": stage.wants.__name__ if stage.wants else None,
                "rewards": [f"{reward.name} x {weight:g}" for reward, weight in stage.rewards],
                "evals": [
                    e.name
                    + (f" ({e.eval.name})" if e.name != e.eval.name else "")
                    + f" on {e.data.label}"
                    + (f", every {e.every} steps too" if e.every else "")
                    for e in stage.evals
                ],
                "keep": f"the best checkpoint by {stage.keep}" if stage.keep else None,
                "stop": f"after {stage.stop}" if stage.stop else None,
                "measures": list(decision.evals),
                "fingerprint": stage.fingerprint,
                "memory": str(taken)
                if decision.action != "reuse" and (taken := memory.of_stage(planned, stage))
                else None,
                "leaves": costs.storage(planned, stage, prices)
                if decision.action != "reuse"
                else None,
                "estimate": asdict(estimate) if estimate else None,
                "ahead": costs.describe(estimate, planned.engine.billed) if estimate else None,
                "watch": film.ahead(planned, stage, estimate.steps or None, prices)
                if estimate and decision.action != "reuse"
                else None,
            }
        )
    return found, costs.total(ahead)

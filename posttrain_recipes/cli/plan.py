"""`ptl plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option, recipe_options
from posttrain_recipes.plan import Plan
from posttrain_recipes.store import Store, default_home


@click.command()
@recipe_options
@home_option
@json_option
def plan(
    recipe: Path, preset: str | None, overrides: tuple[str, ...], home: Path | None, as_json: bool
) -> None:
    """Show what running RECIPE would do: stages, hand-offs, and what is reused."""
    planned = api.plan(recipe, preset=preset, overrides=overrides)
    store = Store(default_home(home))
    stages = _stages(planned, store)
    if as_json:
        data = {
            "recipe": planned.name,
            "preset": planned.preset,
            "model": planned.model,
            "engine": planned.engine.name,
            "fingerprint": planned.fingerprint,
            "stages": stages,
        }
        click.echo(json.dumps(data, indent=2))
        return
    preset_note = f", preset {planned.preset}" if planned.preset else ""
    click.echo(f"{planned.name}: {planned.model} on engine {planned.engine.name}{preset_note}")
    if planned.description:
        click.echo(f"  {planned.description}")
    for number, stage in enumerate(stages, 1):
        click.echo(f"\n{number}. {stage['name']}: {stage['action']}")
        click.echo(f"   from    {stage['from']}")
        if stage["method"]:
            click.echo(f"   method  {stage['method']}")
            click.echo(f"   data    {stage['data']} as {stage['records']} records")
        for name in stage["rewards"]:
            click.echo(f"   reward  {name}")
        for name in stage["evals"]:
            click.echo(f"   eval    {name}")


def _stages(planned: Plan, store: Store) -> list[dict[str, Any]]:
    latest = store.latest(planned.fingerprint)
    found = []
    for stage in planned.stages:
        kept = latest.stage(stage.name) if latest else None
        earlier = store.finished_stage(stage.fingerprint)
        if earlier is not None:
            action = f"reuse what run {earlier[0].id} trained"
        elif kept is not None and kept.resume is not None:
            action = f"go on from step {kept.resume.step} of {kept.total_steps}"
        else:
            action = "train" if stage.method else "evaluate"
        found.append(
            {
                "name": stage.name,
                "action": action,
                "from": f"{stage.start} ({planned.model})"
                if stage.start == "base"
                else stage.start,
                "method": stage.method.name if stage.method else None,
                "data": stage.data.label if stage.data else None,
                "records": stage.wants.__name__ if stage.wants else None,
                "rewards": [f"{reward.name} x {weight:g}" for reward, weight in stage.rewards],
                "evals": [
                    e.name
                    + (f" ({e.eval.name})" if e.name != e.eval.name else "")
                    + f" on {e.data.label}"
                    for e in stage.evals
                ],
                "fingerprint": stage.fingerprint,
            }
        )
    return found

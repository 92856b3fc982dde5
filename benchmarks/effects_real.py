"""What recipes show on a real model: the part of `docs/effects.md` that is not about toys.

A recipe's preset `small` is run for one seed at a time, and what it found is kept after each, with
the weights that it was found on. A claim holds where each seed keeps its bound and is told from its
start in pairs, on the same held-out records, with p < 0.01. A limit on what may be lost needs the
bound alone. What does not hold stays in the table.
"""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from effects_claims import Effect, Finding, claims, findings

from posttrain_recipes import api
from posttrain_recipes.planning import gates
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.reporting import report, scores, statistics
from posttrain_recipes.store import RunRecord

LEVEL = 0.01
"""Of the paired test that each seed has to pass."""
SMALL_MODEL = "a672150fb4f9"
"""What the weights of `tools/small_model.py` are known by."""

Seed = dict[str, Any]
Found = Mapping[str, Mapping[str, Seed]]
"""By recipe and seed: weights, recipe, dtype, minutes and effects."""


# --- running -------------------------------------------------------------------------------------


def weights(model: str) -> str:
    """What the weights of a model are known by: the start of the SHA-256 of its safetensors; its
    name where it is no directory with such files."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if not files:
        return model
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def known(plan: Plan) -> str:
    """Equal for two plans of one recipe and seed: the recipe as resolved, wherever model and data
    lie."""
    resolved = {name: value for name, value in plan.resolved.items() if name != "model"}
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]


def run(
    path: Path,
    preset: str,
    overrides: Sequence[str],
    seed: int,
    home: Path,
    kept: Seed | None = None,
) -> Seed | None:
    """Run one recipe with one seed.

    Args:
        kept: what is known of it already. It is not run again where that was found by the same
            recipe on the same weights.

    Returns:
        What was found, `kept` itself where nothing was run; None where the recipe claims nothing.
    """
    overrides = [*overrides, f"seed={seed}"]
    plan = api.plan(path, preset=preset, overrides=overrides)
    label = f"{path.stem}, {preset}, seed {seed}"
    if not list(claims(plan.resolved)):
        print(f"{label}: claims nothing, not run", flush=True)
        return None
    of = {"weights": weights(plan.model), "recipe": known(plan)}
    if kept is not None and of.items() <= kept.items():
        print(f"{label}: there already, not run", flush=True)
        return kept
    if kept is not None:
        print(f"{label}: of another recipe or other weights, run again", flush=True)
    computed = _computed()
    record = api.run(path, preset=preset, overrides=overrides, home=home).record
    made = {
        **of,
        "dtype": plan.engine.precision or "float32",
        "minutes": round(record.seconds / 60, 1),
        "core_minutes": round((_computed() - computed) / 60, 1),
        "effects": [tested(record, one) for one in findings(record, plan.resolved)],
        "beside": [tested(record, one) for one in beside(record, plan.resolved)],
    }
    for one in made["effects"]:
        print(
            f"{label}: {one['subject']} {one['bound']} after {one['stage']}: "
            f"{one['before']:.3f} -> {one['after']:.3f}, p {_shown_p(one['p'])}",
            flush=True,
        )
    return made


def _computed() -> float:
    """Seconds of cores that processes took which this one began and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def beside(record: RunRecord, resolved: Mapping[str, Any]) -> Iterator[Finding]:
    """What stages that start from the same weights found by the same eval: each beside the first
    of them, in the place of its start."""
    start = gates.starts_of(record.resolved)
    first: dict[tuple[str, str, str], Finding] = {}
    for one in findings(record, resolved):
        same = start[one.after.stage.name], one.after.measured.name, one.metric
        other = first.setdefault(same, one)
        if other.source != one.source:
            subject = f"{one.after.measured.name} beside {other.source}"
            yield replace(one, subject=subject, bound="", before=other.after)


def tested(record: RunRecord, one: Finding) -> dict[str, Any]:
    """A finding as it is kept, with the paired test of after against before."""
    last, first = (
        (
            side.measured.metrics[one.metric],
            scores.load(record, side.stage, side.measured, side.when).get(one.metric),
        )
        for side in (one.after, one.before)
    )
    found = statistics.compare(last[0], first[0], last[1], first[1]).tested
    before, after = one.values
    return {
        "stage": one.source,
        "subject": one.subject,
        "bound": one.bound,
        "metric": one.metric,
        "before": before,
        "after": after,
        "p": found.p if found and found.paired else None,
        "records": last[0].count,
    }


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One claim of a recipe, with what each seed found and how surely it moved."""

    effect: Effect
    p: Sequence[float | None]
    """Of the paired test, by seed; None where there was none."""
    records: int

    @property
    def holds(self) -> bool:
        """Every seed keeps the bound and, unless that limits a loss, moved with p < 0.01."""
        sure = all(p is not None and p < LEVEL for p in self.p)
        return self.effect.kept and (sure or self.effect.limits_loss)


def claimed(seeds: Mapping[str, Seed], what: str = "effects") -> list[Claim]:
    """The claims of a recipe over the seeds that it was run with, or what is `beside` them."""
    found: dict[tuple[str, str, str], Claim] = {}
    for seed in sorted(seeds, key=int):
        for one in seeds[seed].get(what, []):
            named = one["stage"], one["subject"], one["bound"]
            claim = found.setdefault(
                named, Claim(Effect(*named, one["metric"], [], []), [], one["records"])
            )
            claim.effect.before.append(one["before"])
            claim.effect.after.append(one["after"])
            found[named] = Claim(claim.effect, [*claim.p, one["p"]], claim.records)
    return list(found.values())


COLUMNS = (
    "recipe",
    "measured",
    "claim",
    "before",
    "after, by seed",
    "paired p",
    "core-minutes",
    "holds",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|---|---|"


def rows(recipe: str, seeds: Mapping[str, Seed], wanted: Sequence[int]) -> Iterator[str]:
    """The table's rows of one recipe; a claim over fewer seeds than wanted does not hold yet."""
    order = sorted(seeds, key=int)
    minutes = ", ".join(f"{seeds[seed]['core_minutes']:.1f}" for seed in order)
    for claim in claimed(seeds):
        verdict = "yes" if claim.holds else "**no**"
        if claim.holds and not {str(seed) for seed in wanted} <= set(order):
            verdict = f"pending ({len(order)} of {len(wanted)} seeds)"
        bound = f"{'change ' * claim.effect.change}{claim.effect.bound}"
        yield _row(recipe, claim, claim.effect.measured, bound, f"{minutes} | {verdict}")
    for claim in claimed(seeds, "beside"):
        name, _, other = claim.effect.subject.partition(" beside ")
        yield _row(recipe, claim, name, f"none: beside {other}", " | -")


def _shown_p(p: float | None) -> str:
    return "-" if p is None else report.show_p(p)


def _row(recipe: str, claim: Claim, name: str, bound: str, end: str) -> str:
    def number(value: float) -> str:
        return report.show_value(value, claim.effect.share)

    before = [number(value) for value in claim.effect.before]
    # One value where the start of every seed is the base model.
    shown = before[:1] if len(set(before)) == 1 else before
    return (
        f"| `{recipe}`, small | {name} after {claim.effect.stage} (n = {claim.records}) "
        f"| {bound} | {', '.join(shown)} | {', '.join(map(number, claim.effect.after))} "
        f"| {', '.join(map(_shown_p, claim.p))} | {end} |"
    )


def section(found: Found, wanted: Sequence[int], text: str, names: Sequence[str]) -> str:
    """The part of the page: what was run, the table, what is pending.

    Args:
        text: what stands around the table, with `{weights}`, `{table}` and `{pending}`.
        names: the recipes that have the preset.
    """
    lines = [line for name in names if name in found for line in rows(name, found[name], wanted)]
    missing = [
        name for name in names if not {str(seed) for seed in wanted} <= set(found.get(name, {}))
    ]
    pending = ""
    if missing:
        pending = (
            f"\nNot finished yet: {', '.join(f'`{name}`' for name in missing)}. This goes on:\n\n"
            f"    {COMMAND} --continue {' '.join(missing)}\n"
        )
    table = "\n".join([HEADER, *lines]) if lines else "Nothing was run yet."
    return text.format(weights=_weights(found), table=table, pending=pending, command=COMMAND)


COMMAND = "python benchmarks/effects.py --preset small --set model=DIR"


def _weights(found: Found) -> str:
    """On which weights and in which numbers, in words."""
    kinds = {(one["weights"], one["dtype"]) for seeds in found.values() for one in seeds.values()}
    return "; ".join(
        f"`{name}` in {dtype}"
        + (
            ", which is SmolLM2-135M-Instruct from a Q4_1 file given back in float32 "
            "(`tools/small_model.py`), close to the published weights but not them"
            if name == SMALL_MODEL
            else ""
        )
        for name, dtype in sorted(kinds)
    )

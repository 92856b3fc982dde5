"""What every shipped recipe showed over several seeds, and whether that is what it claims.

    python benchmarks/effects.py [RECIPE ...] [--seeds 0 1 2] [--home DIR] [--continue] [--table]
    python benchmarks/effects.py --preset small --set model=DIR [RECIPE ...] [--continue]

Runs the recipes as a bare `ptl run` would, each with `matrix: {seed: [...]}` so that its seeds
share one engine, and keeps what they found in `benchmarks/effects.json`; then writes
`docs/effects.md` and the tables and drawings of `docs/methods/*.md` from that file, which recipes
that were not run now stay in. A run that was stopped is gone on with, and one that is there already
is not run again. `--table` only writes the pages. Exits with 1 where a recipe does not show what it
claims.

What a recipe claims is what it says under `expect:`. A claim holds where every seed keeps the bound
and moves in its direction by more than the spread (largest minus smallest) of the seeds; a limit on
what may be lost (`change: "> -25%"`), where every seed keeps it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from posttrain_recipes import api
from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as written_recipes

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "effects.json"
PAGE = ROOT / "docs" / "effects.md"
PLOTS = ROOT / "docs" / "effects"
SEEDS = [0, 1, 2]
SMALL = "small"
"""The preset of recipes that run a real model, and its key among what is kept."""
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import effects_plot  # noqa: E402
import effects_real  # noqa: E402
from effects_claims import Effect, claims, effects, new_forms, stages_of  # noqa: E402
from effects_words import AGAIN, FORMS, HEAD, PENDING, REAL  # noqa: E402
from method_docs import PAGES, fill  # noqa: E402

# --- pages ---------------------------------------------------------------------------------------

COLUMNS = ("recipe", "measured", "claim", "before", "after, by seed", "spread", "holds")
HEADER = f"| {' | '.join(COLUMNS)} |\n|---|---|---|---:|---|---:|---|"


def rows(recipe: str, kept: Mapping[str, Any], what: str = "effects") -> Iterator[str]:
    """The table's rows of one recipe: of its claims, or of what it measures in new forms."""
    for item in kept.get(what, []):
        effect = Effect(**item)

        def number(value: float, percent: bool = effect.share) -> str:
            if math.isnan(value):
                return "-"
            return f"{100 * value:.1f}%" if percent else f"{value:.3f}"

        kind = "change " * effect.change
        measured = effect.measured if effect.bound else effect.subject.replace("/", " ")
        before = sum(effect.before) / len(effect.before)
        yield (
            f"| `{recipe}` | {measured} after {effect.stage} "
            f"| {f'{kind}{effect.bound}' if effect.bound else 'none'} "
            f"| {number(before)} | {', '.join(map(number, effect.after))} "
            f"| {number(effect.spread)} "
            f"| {_verdict(effect)} |"
        )


def _verdict(effect: Effect) -> str:
    if not effect.bound:
        return "-"
    return "yes" if effect.holds else "**no**"


def table(found: Mapping[str, Any], names: Sequence[str], what: str = "effects") -> str | None:
    """The table of these recipes; None where nothing is known of any."""
    lines = [line for name in names if name in found for line in rows(name, found[name], what)]
    return "\n".join([HEADER, *lines]) if lines else None


def lines(found: Mapping[str, Any], names: Sequence[str]) -> list[effects_plot.Line]:
    """What is drawn of these recipes; a metric with several bounds once."""
    drawn: dict[tuple[str, str], effects_plot.Line] = {}
    for name in names:
        for item in found.get(name, {"effects": []})["effects"]:
            effect = Effect(**item)
            label = f"{name}: {effect.measured} after {effect.stage}"
            drawn[label, effect.metric] = effects_plot.Line(
                label, effect.share, effect.before, effect.after
            )
    return list(drawn.values())


def shown(found: Mapping[str, Any], page: str, recipes: str) -> str | None:
    """A page's table of these recipes, its drawing and the command that makes both."""
    names = recipes.split()
    made = table(found, names)
    if made is None:
        return None
    _whole(PLOTS / f"{page}.svg", lambda path: effects_plot.draw(lines(found, names), path))
    return (
        f"{made}\n\n![Before and after, by seed](../effects/{page}.svg)\n\n"
        f"    python benchmarks/effects.py {recipes}"
    )


def write_pages(found: Mapping[str, Any], real: effects_real.Found) -> None:
    """Write `docs/effects.md`, and the tables and drawings of the methods' pages.

    Args:
        real: what the presets `small` found.
    """
    parts = [HEAD, effects_real.section(real, SEEDS, REAL, list(small_recipes()))]
    seeds = sorted({tuple(kept["seeds"]) for kept in found.values()})
    for group in seeds:
        names = [name for name in sorted(found) if tuple(found[name]["seeds"]) == group]
        made = table(found, names)
        if made:
            parts.append(f"## Seeds {', '.join(map(str, group))}\n\n{made}\n")
    made = table(found, sorted(found), "new_forms")
    if made:
        parts.append(FORMS.format(table=made) + _pending(found))
    parts.append(AGAIN)
    _write(PAGE, "\n".join(parts))
    for path in sorted(PAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        block = partial(shown, found, path.stem)
        _write(path, fill(text, "effects", block))


def _pending(found: Mapping[str, Any]) -> str:
    """Which recipes have evals in new forms that were not run since."""
    names = [
        path.stem
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
        if "new_forms" not in found.get(path.stem, {})
        and re.search(r"name: \w+_new_forms", path.read_text(encoding="utf-8"))
    ]
    if not names:
        return ""
    return PENDING.format(names=", ".join(f"`{n}`" for n in names), recipes=" ".join(names))


def _write(path: Path, text: str) -> None:
    _whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    write(temporary)
    temporary.replace(path)


# --- running -------------------------------------------------------------------------------------


def over_seeds(written: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """What to `--set` for the recipe to run over seeds: a comparison may have seeds of its own."""
    values = f"[{', '.join(map(str, seeds))}]"
    own = [stage["name"] for stage in stages_of(written) if "seeds" in stage]
    if own:
        return [f"stages.{name}.seeds={values}" for name in own]
    return [f"matrix={{seed: {values}}}"] if len(seeds) > 1 else [f"seed={seeds[0]}"]


def run(path: Path, seeds: Sequence[int], home: Path) -> dict[str, Any] | None:
    """Run a recipe over seeds; None where it claims nothing."""
    written = api.plan(path).resolved
    if not list(claims(written)):
        print(f"{path.stem}: claims nothing, not run", flush=True)
        return None
    result = api.run(path, overrides=over_seeds(written, seeds), home=home)
    found = effects(result.record, written)
    for effect in found:
        after = ", ".join(f"{value:.3f}" for value in effect.after)
        print(
            f"{path.stem}: {effect.subject} {effect.bound}: {effect.before[0]:.3f} -> {after}"
            f"  {'holds' if effect.holds else 'DOES NOT HOLD'}",
            flush=True,
        )
    kept = {"seeds": list(seeds), "effects": [asdict(effect) for effect in found]}
    forms = [asdict(effect) for effect in effects(result.record, written, new_forms)]
    return {**kept, "new_forms": forms} if forms else kept


def small_recipes() -> dict[str, Path]:
    """The recipes that have a preset `small`, by name."""
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    return {path.stem: path for path in paths if SMALL in written_recipes.preset_names(path)}


def main() -> None:
    """Run, keep, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default every one")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--home", type=Path, default=ROOT / ".ptl" / "effects")
    parser.add_argument("--preset", choices=[SMALL], help="on a real model, one seed at a time")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="with --preset: as `ptl run` takes it, model=DIR",
    )  # fmt: skip
    parser.add_argument(
        "--continue", action="store_true", dest="on", help="leave out what is kept already"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, write the pages")
    args = parser.parse_args()
    if args.overrides and not args.preset:
        parser.error("--set goes with --preset: a bare run is of the recipes as they are")
    known = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    shipped = small_recipes() if args.preset else known
    names = [re.sub(r"\.yaml$", "", Path(name).name) for name in args.recipes] or list(shipped)
    unknown = sorted(set(names) - set(shipped))
    if unknown:
        parser.error(f"no such recipe: {', '.join(unknown)}; there is {', '.join(shipped)}")
    recipes = {name: shipped[name] for name in names}
    try:
        if args.table:
            write_pages(_kept(), _kept_small())
        elif args.preset:
            run_small(recipes, args)
        else:
            run_toys(recipes, args)
    except PtlError as error:
        sys.exit(f"{error}\nwhat was found before is kept; --continue leaves it out")
    except KeyboardInterrupt:
        print("stopped; the same command with --continue goes on", file=sys.stderr)
        sys.exit(130)
    failed = _failed_small(names) if args.preset else _failed(names)
    if failed:
        print("these do not show what they claim: " + ", ".join(failed))
    sys.exit(1 if failed else 0)


def run_toys(recipes: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Run recipes as they are over all seeds, and keep each."""
    for name, path in recipes.items():
        if args.on and _kept().get(name, {}).get("seeds") == args.seeds:
            print(f"{name}: there already, not run", flush=True)
            continue
        made = run(path, args.seeds, args.home)
        if made is not None:
            # Read again: another one of these may have added a recipe meanwhile.
            _write_json({**_whole_file(), name: made})
    write_pages(_kept(), _kept_small())


def run_small(recipes: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Run presets `small`, one seed at a time; keep each, and the page with it."""

    def keep(name: str, seed: str, made: effects_real.Seed) -> None:
        small = _kept_small()
        small[name] = {**small.get(name, {}), seed: made}
        _write_json({**_whole_file(), SMALL: small})
        write_pages(_kept(), small)

    for seed in args.seeds:  # all recipes with the first seed come first: it takes long
        for name, path in recipes.items():
            there = _kept_small().get(name, {}).get(str(seed)) if args.on else None
            made = effects_real.run(path, SMALL, args.overrides, seed, args.home, there)
            if made is not None and made is not there:
                keep(name, str(seed), made)


def _whole_file() -> dict[str, Any]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def _kept() -> dict[str, Any]:
    """What recipes showed on toys, by name."""
    return {name: found for name, found in _whole_file().items() if name != SMALL}


def _kept_small() -> dict[str, dict[str, effects_real.Seed]]:
    """What presets `small` showed, by recipe and seed."""
    return _whole_file().get(SMALL, {})


def _write_json(whole: Mapping[str, Any]) -> None:
    _write(KEPT, json.dumps(whole, indent=1, sort_keys=True) + "\n")


def _failed(names: Sequence[str]) -> list[str]:
    kept = _kept()
    return [n for n in names if n in kept and not all(_holds(e) for e in kept[n]["effects"])]


def _failed_small(names: Sequence[str]) -> list[str]:
    kept = _kept_small()
    return [n for n in names if not all(c.holds for c in effects_real.claimed(kept.get(n, {})))]


def _holds(item: Mapping[str, Any]) -> bool:
    return Effect(**item).holds


if __name__ == "__main__":
    main()

"""What every shipped recipe showed over several seeds, and whether that is what it claims.

    python benchmarks/effects.py [RECIPE ...] [--seeds 0 1 2] [--home DIR] [--table]

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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain_recipes import api
from posttrain_recipes.planning import gates
from posttrain_recipes.planning.gates import Bound, Subject
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, StageRecord

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "effects.json"
PAGE = ROOT / "docs" / "effects.md"
NEW_FORMS = ("new_forms", "new_requests")
"""What the names of evals end with that ask in forms of no training file."""
PLOTS = ROOT / "docs" / "effects"
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import effects_plot  # noqa: E402
from method_docs import PAGES, fill  # noqa: E402


@dataclass(frozen=True)
class Effect:
    """One claim of a recipe, with what each seed found."""

    stage: str
    """The last stage that it was measured after, as the recipe writes it."""
    subject: str
    bound: str
    metric: str
    before: list[float]
    after: list[float]

    @property
    def measured(self) -> str:
        """The eval's name."""
        subject = Subject.parse(self.subject)
        return self.subject if subject is None else subject.eval

    @property
    def share(self) -> bool:
        """Whether it is a share, shown in percent."""
        return self.metric in report.SHARES

    @property
    def spread(self) -> float:
        """Largest minus smallest value after training."""
        return max(self.after) - min(self.after)

    @property
    def sign(self) -> int:
        """1 where the claim is of more, -1 where it is of less."""
        return 1 if self.bound.strip().startswith(">") else -1

    @property
    def holds(self) -> bool:
        """Every seed keeps the bound and, unless that limits a loss, moves beyond the spread."""
        bound, subject = Bound.parse(self.bound), Subject.parse(self.subject)
        if bound is None or subject is None or not self.after:
            return False
        changes = [a - b for a, b in zip(self.after, self.before, strict=True)]
        if subject.kind == "change" and self.sign * bound.value < 0:
            return all(map(bound.holds, changes))
        asked = changes if subject.kind == "change" else self.after
        moved = min(self.sign * change for change in changes)
        return all(map(bound.holds, asked)) and moved > self.spread


def claims(resolved: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """What a recipe expects: the stage (None: of each way through it), subject and bound."""
    for subject, bound in (resolved.get("expect") or {}).items():
        yield None, subject, str(bound)
    for stage in _stages(resolved):
        for subject, bound in (stage.get("expect") or {}).items():
            yield stage.get("name"), subject, str(bound)


def new_forms(resolved: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """What a recipe measures in forms that no training file has, and claims nothing of."""
    for stage in _stages(resolved):
        for item in stage.get("eval") or []:
            name = item if isinstance(item, str) else str(item.get("name", ""))
            if name.endswith(NEW_FORMS):
                yield stage.get("name"), name, ""
                yield stage.get("name"), f"{name}/margin", ""


def _stages(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All stages of a recipe, those of loops and of the branches of comparisons too."""
    for stage in [*holder.get("stages", []), *holder.get("compare", [])]:
        yield stage
        yield from _stages(stage)


def effects(
    record: RunRecord,
    written: Mapping[str, Any],
    wanted: Callable[[Mapping[str, Any]], Iterator[tuple[str | None, str, str]]] = claims,
) -> list[Effect]:
    """What a run over seeds found about each claim of the recipe, as it is written.

    Forgetting is no change of one metric and is left to the recipe's own bound.

    Args:
        wanted: what is looked for in the recipe: its claims, or `new_forms`.
    """
    start = gates.starts_of(record.resolved)
    stages = {stage.name: stage for stage in record.stages}
    found: dict[tuple[str, str, str], Effect] = {}
    for name in start:
        path = _path(name, start, stages)
        leaf = name not in start.values()
        source = name.partition("@")[0]
        for stage, text, bound in wanted(written):
            subject = Subject.parse(text)
            if subject is None or subject.kind == gates.FORGETTING:
                continue
            if (source != stage) if stage is not None else not leaf:
                continue
            over = path if stage is None else path[-1:]
            values = _before_and_after(subject, over)
            if values is None:
                continue
            before, after, metric = values
            effect = found.setdefault(
                (source, text, bound), Effect(source, text, bound, metric, [], [])
            )
            effect.before.append(before)
            effect.after.append(after)
    return list(found.values())


def _path(
    name: str, start: Mapping[str, str], stages: Mapping[str, StageRecord]
) -> list[StageRecord]:
    path: list[StageRecord] = []
    while name in stages:
        path.insert(0, stages[name])
        name = start.get(name, "")
    return path


def _before_and_after(
    subject: Subject, path: Sequence[StageRecord]
) -> tuple[float, float, str] | None:
    """The first value, the last one, and the metric's name."""
    first: float | None = None
    last: float | None = None
    metric = ""
    for stage in path:
        for measured, is_after in [(m, False) for m in stage.before] + [
            (m, True) for m in stage.after
        ]:
            if measured.name != subject.eval:
                continue
            metric = subject.metric or measured.main or ""
            estimate = measured.metrics.get(metric)
            if estimate is None:
                continue
            if first is None:
                first = estimate.value
            if is_after:
                last = estimate.value
    return None if first is None or last is None else (first, last, metric)


# --- pages ---------------------------------------------------------------------------------------

HEAD = """\
# What the recipes showed

Every shipped recipe that states a claim about held-out data, run as `ptl run` runs it, over several
seeds. Written from `benchmarks/effects.json` by

    python benchmarks/effects.py

A claim is what the recipe says under `expect:`. It holds where every seed keeps that bound and
moves by more than the spread, which is the largest minus the smallest value after training. A limit
on what may be lost (`change > -25%`) holds where every seed keeps it. Before is the mean over
seeds. `tests/e2e/test_claims.py` runs `cpo` at every change of the code, and two more nightly
(`.ci/nightly`), with seed 0.

## In words

- `distill_on_policy`: from 16 prompts within two points of the teacher, where imitation of its
  answers stays 7 to 23 points below with three times the tokens.
- `distill_compress`: held-out 40% to 82 to 84% in a model of a quarter of the size; the teacher
  91%.
- `sdft`: of other forms of answer at 88.5% it keeps 71 to 79%, imitation 57.5 to 58%.
- `continual`: without replay the first skill falls from 91% to 53 to 61%, with a fifth of its
  data to 70 to 72%.
- `multi_objective`: for right answers alone, held-out sentences go from 48.5% to 1 to 3%; for
  both rewards, to 100%, and as many answers are right (91.0 to 94.5%, against 88.5 to 94.5%).
- `rlhf`: with a price on divergence the true rule prefers 92 to 95% of the held-out replies to
  those of the start; without one 22 to 31%, though the reward model rates them higher.
- `sft_then_rlhf`: the true rule prefers 97 to 99% of the held-out replies to those of the start;
  answers that SFT taught lost 4.3, 3.5 and 4.3 points of 83.
- `iterative_rlhf`: a held-out reply scores 1.5 of 3 after SFT, then 2.2, 2.6 and 2.8 (mean of the
  seeds).
- `compare_methods`: held-out sums from 46.5% to 96.2 (SFT), 93.2 (DPO), 92.7 (GRPO) and 95.0%
  (distillation), each with 20,000 tokens.
- `distill_then_rl`: from a teacher of 76 to 80%: held-out sums 46.5% to 82 to 87.5% by
  distillation, to 95 to 97% by RL.
- `rlvr_then_rubric`: held-out sums 46.5% to 96% and then 94 to 96%; polite replies preferred
  63.5%, then 16 to 32%, then 98.5 to 100%.
- `sft_distill_rl`: held-out sums 36.5%, then 45, 76 and 83% (mean of the seeds).
- `tool_use`: no product right before, 88 to 91% after imitation of calls, 95.5 to 96% after RL
  with the tool.
- `self_play`: 16% of games won against a player who takes any number, then 86.5 to 92.5%.
- `sft_mbpp`: none of 100 held-out programs pass their tests, then 97 to 98.
- `grpo_gsm8k`: 0%, then 85 to 89% by a little imitation and 97 to 98% by RL.
- `distill_reasoning`: 2% to 87 to 89%; the teacher 94%.
"""
AGAIN = """\
## What was measured again

- `sft` and `sft_then_dpo`: a test split goes by content now, so that both train on other records of
  `chat.jsonl` than before, and every seed on the same. Before, `held_out` was 89.5, 91.8 and 92.2%
  after SFT, and `tone` 97.5, 98.0 and 100.0% after DPO. The claims hold as they did.
- `rlhf`, `sft_then_rlhf` and `rlvr_then_rubric`: what divergence costs is taken off each token's
  advantage after the rewards were compared, and no longer off rewards before. `rlhf` has `kl_beta:
  0.3` for it, where it had 0.1; with 0.1 its claim does not hold any more (seed 2).
- The other recipes of the table above, as they have evals in new forms. Their claims are measured
  on the same records as before and hold with the same values, but for one record of 200 in one seed
  of `grpo_arithmetic`.
"""
FORMS = """\
## Forms that training never saw

What is claimed above is of new contents in the forms of training: held-out numbers, words, names
and requests, asked as the training files ask. These evals have other forms, and nothing is claimed
of them: sums in other words (`sums_new_forms`), requests of other kinds with replies in the phrases
of training (`tone_new_requests`), and those with replies of which no phrase was trained on
(`tone_new_forms`). `margin` is the mean difference of the two replies in log-probability per token.

{table}

Of tone, phrases are learned. With every method the known polite ones become likelier in replies to
other kinds of requests too (to the most, 93 to 95% of pairs, with `ipo`). To new phrases nothing
carries over: the share falls, and most where the known phrases rose most. Of sums in other words
about a quarter is right after RL and about a fifth after SFT. So `tone` and `held_out` tell of new
contents, and are no claim that kindness or arithmetic holds in new forms.
"""
PENDING = """
Not measured in new forms yet: {names}.

    python benchmarks/effects.py {recipes}
"""
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

        subject = Subject.parse(effect.subject)
        kind = "change " if subject is not None and subject.kind == "change" else ""
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


def write_pages(found: Mapping[str, Any]) -> None:
    """Write `docs/effects.md`, and the tables and drawings of the methods' pages."""
    parts = [HEAD]
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
    own = [stage["name"] for stage in _stages(written) if "seeds" in stage]
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


def main() -> None:
    """Run, keep, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default every one")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=ROOT / ".ptl" / "effects")
    parser.add_argument("--table", action="store_true", help="run nothing, write the pages")
    args = parser.parse_args()
    names = [re.sub(r"\.yaml$", "", Path(name).name) for name in args.recipes] or list(shipped)
    unknown = sorted(set(names) - set(shipped))
    if unknown:
        parser.error(f"no recipe is named {', '.join(unknown)}; there is {', '.join(shipped)}")
    for name in [] if args.table else names:
        made = run(shipped[name], args.seeds, args.home)
        if made is not None:
            # Read again: another one of these may have added a recipe meanwhile.
            _write(KEPT, json.dumps({**_kept(), name: made}, indent=1, sort_keys=True) + "\n")
    kept = _kept()
    write_pages(kept)
    failed = [name for name in names if name in kept and not _all_hold(kept[name])]
    if failed:
        print("these do not show what they claim: " + ", ".join(failed))
    sys.exit(1 if failed else 0)


def _kept() -> dict[str, Any]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def _all_hold(kept: Mapping[str, Any]) -> bool:
    return all(Effect(**item).holds for item in kept["effects"])


if __name__ == "__main__":
    main()

"""The tables of `docs/peers.md`, from what `peers.py` kept in `peers.json`."""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from posttrain_recipes.reporting.statistics import mcnemar, paired_t  # noqa: E402
from posttrain_recipes.training.intervals import proportion  # noqa: E402

PAGE = ROOT / "docs" / "peers.md"
_BLOCK = re.compile(r"(<!-- peers: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "ptl": "this package",
    "trl": "TRL",
    "axolotl": "axolotl",
    "llamafactory": "LLaMA-Factory",
    "cookbook": "tinker-cookbook, our engine",
    "axolotl_tinker": "axolotl for Tinker, our engine",
}
LEVEL = 0.05
"""Below which p tells two sides apart."""

Kept = Mapping[str, Any]


# --- what a person writes ------------------------------------------------------------------------


def lines(path: Path) -> int:
    """Lines of a file that are neither blank nor a comment (of Python: nor a docstring)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = text.replace(ast.get_docstring(ast.parse(text), clean=False) or "\0", "")
    written = (line.strip() for line in text.splitlines())
    return sum(bool(line) and not line.startswith("#") and line != '""""""' for line in written)


def values(path: Path) -> int:
    """Values that a file sets: the scalars of YAML and JSON, the keyword arguments of Python."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return sum(isinstance(node, ast.keyword) for node in ast.walk(ast.parse(text)))
    return _scalars(yaml.safe_load(text))


def _scalars(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_scalars, value.values()))
    if isinstance(value, list):
        return sum(map(_scalars, value))
    return 1


# --- tables --------------------------------------------------------------------------------------


def _table(columns: str, rows: Iterator[tuple[str, ...]]) -> str:
    names = columns.split(" | ")
    head = f"| {' | '.join(names)} |\n|---|{'---:|' * (len(names) - 1)}\n"
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _worked(kept: Kept, setting: str) -> dict[str, dict[str, Any]]:
    """The runs of a setting that ended well and were scored, in the order of `NAMES`."""
    runs = kept["runs"].get(setting, {})
    return {name: runs[name] for name in NAMES if "nll" in runs.get(name, {})}


def _right(run: Mapping[str, Any]) -> list[bool]:
    return [sign == "1" for sign in run["right"]]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(run: Mapping[str, Any]) -> str:
    of = proportion(sum(_right(run)), len(run["right"]))
    return f"{of.value:.1%} ({of.low:.1%} to {of.high:.1%})"


def quality(kept: Kept, setting: str) -> str:
    """Exact match and loss on held-out records, each tool beside this package in pairs."""
    runs = _worked(kept, setting)
    ours = runs.get("ptl")

    def rows() -> Iterator[tuple[str, ...]]:
        base = kept["base"]
        yield "the model before", _share(base), "", f"{statistics.mean(base['nll']):.3f}", ""
        for name, run in runs.items():
            apart = loss = ""
            if name != "ptl" and ours is not None:
                told = mcnemar(_right(run), _right(ours), "records")
                apart = f"{100 * told.difference:+.1f} ({_p(told.p)})"
                told = paired_t(run["nll"], ours["nll"], "records")
                loss = f"{told.difference:+.3f} ({_p(told.p)})"
            yield NAMES[name], _share(run), apart, f"{statistics.mean(run['nll']):.3f}", loss

    columns = "trained by | right (95%) | beside ours, points (p) | loss | beside ours, nats (p)"
    return _table(columns, rows())


def seconds(kept: Kept, setting: str) -> str:
    """Medians of the time to an adapter and of the loop, and their ratios to this package's."""
    runs = _worked(kept, setting)
    tokens = kept["data"]["tokens"]

    def rows() -> Iterator[tuple[str, ...]]:
        for name, run in runs.items():
            total, loop = _medians(run)
            first, first_loop = _medians(runs["ptl"]) if "ptl" in runs else (None, None)
            yield (
                NAMES[name],
                f"{total:.0f} s",
                f"{total / first:.2f}" if total and first else "",
                f"{loop:.0f} s" if loop else "not told",
                f"{loop / first_loop:.2f}" if loop and first_loop else "",
                f"{tokens / loop:.0f}" if loop else "",
                str(len(run["seconds"])),
            )

    columns = "trained by | to an adapter | as long as ours | the loop alone | as long as ours"
    return _table(f"{columns} | tokens/s in it | n", rows())


def _medians(run: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Median seconds in all, and of the loop; None where they are not known."""
    total, loop = run.get("seconds"), run.get("loop")
    return (
        statistics.median(total) if total else None,
        statistics.median(loop) if loop else None,
    )


def writing(kept: Kept, setting: str) -> str:
    """Lines and values that a person writes, for each tool that was asked to run."""
    runs = kept["runs"].get(setting, {})

    def rows() -> Iterator[tuple[str, ...]]:
        for name in NAMES:
            if name in runs:
                yield NAMES[name], str(runs[name]["lines"]), str(runs[name]["values"])

    return _table("tool | lines | values", rows())


def ahead(kept: Kept, setting: str) -> str:
    """Every number in which a peer is better than this package, one line each."""
    runs = _worked(kept, setting)
    if "ptl" not in runs:
        return "Not measured."
    ours = runs["ptl"]
    found: list[str] = []
    for name, run in runs.items():
        if name == "ptl":
            continue
        points = mcnemar(_right(run), _right(ours), "records")
        if points.difference > 0:
            sure = "" if points.p < LEVEL else ", which may be chance"
            gained = f"{100 * points.difference:.1f} points more are right"
            found.append(f"{NAMES[name]}: {gained} (p {_p(points.p)}{sure})")
        loss = paired_t(run["nll"], ours["nll"], "records")
        if loss.difference < 0 and loss.p < LEVEL:
            found.append(
                f"{NAMES[name]}: the loss is {-loss.difference:.3f} nats lower (p {_p(loss.p)})"
            )
        for what, mine, theirs in zip(
            ("to an adapter", "in the loop"), _medians(ours), _medians(run), strict=True
        ):
            if mine and theirs and theirs < mine:
                found.append(f"{NAMES[name]}: {theirs:.0f} s {what}, ours {mine:.0f} s")
        for what in ("lines", "values"):
            if run[what] < ours[what]:
                found.append(f"{NAMES[name]}: {run[what]} {what} to write, ours {ours[what]}")
    return "\n".join(f"- {one}" for one in found) or "None in this setting."


def missing(kept: Kept, setting: str) -> str:
    """What did not run or was not scored, in its own words."""
    runs = kept["runs"].get(setting, {})
    told = [f"- {NAMES[name]}: `{run['failed']}`" for name, run in runs.items() if "failed" in run]
    if unknown := [f"`{setting}/{name}`" for name in NAMES if name not in runs]:
        told.append(f"- Not measured yet: {', '.join(unknown)}; `--only` does each alone.")
    return "\n".join(told) or "Everything ran."


def measured(kept: Kept, _: str) -> str:
    """The machine, the data and the versions."""
    data = kept["data"]
    told = [f"{kept['date']}, {kept['machine']} (of this package and of the scorer)."]
    told.append(
        f"Weights `{kept['weights']}`. {data['train']} conversations of {data['tokens']:,} tokens "
        f"in one pass; {data['held_out']} held out."
    )
    if kept["quick"]:
        told.insert(0, "**A trial of a few steps: these numbers say nothing.**")
    made = "\n\n".join(told) + "\n\n| | versions |\n|---|---|\n"
    for name in NAMES:
        for setting in ("equal", "recommended"):
            found = kept["runs"].get(setting, {}).get(name, {}).get("versions")
            if found:
                told_versions = ", ".join(f"{key} {value}" for key, value in found.items())
                made += f"| {NAMES[name]} | {told_versions} |\n"
                break
    return made.rstrip()


TABLES: dict[str, Callable[[Kept, str], str]] = {
    "quality": quality,
    "seconds": seconds,
    "writing": writing,
    "ahead": ahead,
    "missing": missing,
    "measured": measured,
}


def filled(text: str, kept: Kept) -> str:
    """The page with each `<!-- peers: TABLE SETTING -->` block made from what was kept."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](kept, match[3])}\n\n{match[4]}"

    return _BLOCK.sub(block, text)


def write(kept: Kept) -> None:
    """Fill `docs/peers.md` from what was kept."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")


def dumped(kept: dict[str, Any]) -> str:
    """JSON with a line for each plain value, and lists of numbers on one line."""
    text = json.dumps(kept, indent=1, sort_keys=True)
    return re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n"


def load() -> dict[str, Any]:
    """What `peers.py` kept."""
    return dict(json.loads((ROOT / "benchmarks" / "peers.json").read_text(encoding="utf-8")))

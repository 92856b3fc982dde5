"""Fill the tables of options in `docs/` from the plugins themselves.

    python tools/method_docs.py [--check]

What stands between `<!-- options: NAME -->` and `<!-- end -->` is written by this script: the
options that the method NAME has to itself (`gradient`: those of every method that takes optimizer
steps over a data set). So are `reward`, `dataset` and `eval`. `<!-- effects: RECIPE ... -->` is
filled by `benchmarks/effects.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from posttrain_recipes import registry
from posttrain_recipes.cli.plugins import Option, options
from posttrain_recipes.plugin import DatasetConfig
from posttrain_recipes.rewards.rubric import Criterion
from posttrain_recipes.training.judges.backends import Endpoint, GradingConfig
from posttrain_recipes.training.loops.supervised import GradientConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"
REWARDS, DATASETS, EVALS = (ROOT / "docs" / f"{kind}s.md" for kind in ("reward", "dataset", "eval"))
_BLOCK = re.compile(r"(<!-- (\w+): ([\w -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, kind: str, table: Callable[[str], str | None]) -> str:
    """Replace every block of `kind` by what `table` makes of its name; None leaves it alone."""

    def block(match: re.Match[str]) -> str:
        made = table(match[3]) if match[2] == kind else None
        return match[0] if made is None else f"{match[1]}\n{made}\n\n{match[4]}"

    return _BLOCK.sub(block, text)


def option_table(name: str) -> str:
    """The table of a method's own options, or of those that gradient methods share."""
    if name == "gradient":
        found = options(registry.load().get("method", "sft").config)
        return _table([option for option in found if option.name in GradientConfig.model_fields])
    entry = registry.load().get("method", name)
    shared = GradientConfig.model_fields
    fields = entry.config.model_fields
    own = [
        o
        for o in options(entry.config)
        if o.own or o.name not in shared or fields[o.name].default != shared[o.name].default
    ]
    return _table(own) if own else "None of its own."


def reward_table(name: str) -> str:
    """The table of a reward's own options, or of those that judges share, or of one that nests."""
    nested = {"judging": GradingConfig, "endpoint": Endpoint, "criterion": Criterion}
    if name in nested:
        return _table(options(nested[name]))
    entry = registry.load().get("reward", name)
    judges = issubclass(entry.config, GradingConfig)
    return _table([option for option in options(entry.config) if option.own or not judges])


def dataset_table(name: str) -> str:
    """The table of a dataset's options, without those that every dataset has."""
    shared = DatasetConfig.model_fields
    config = registry.load().get("dataset", name).config
    return _table([option for option in options(config) if option.name not in shared])


def eval_table(name: str) -> str:
    """The table of an eval's options."""
    return _table(options(registry.load().get("eval", name).config))


def filled(text: str) -> str:
    """A page with all of its tables of options as the plugins have them."""
    for kind, table in KINDS.items():
        text = fill(text, kind, table)
    return text


def _table(found: list[Option]) -> str:
    rows = [
        f"| `{o.name}` | {_cell(o.type)} | `{o.default}` | {_cell(o.description)} |" for o in found
    ]
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


KINDS = {
    "options": option_table,
    "reward": reward_table,
    "dataset": dataset_table,
    "eval": eval_table,
}


def main() -> None:
    """Write the pages, or say which of them are out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where stale")
    args = parser.parse_args()
    stale = []
    for path in [*sorted(PAGES.glob("*.md")), REWARDS, DATASETS, EVALS]:
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(path)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if args.check else 'written'}")
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()

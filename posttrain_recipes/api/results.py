"""Verbs on runs that are there: list, show, compare, report, reproduce."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes import registry
from posttrain_recipes.errors import PtlWarning, UsageError
from posttrain_recipes.results import Result
from posttrain_recipes.store import RunRecord, Store, default_home, write_atomic

if TYPE_CHECKING:
    from posttrain_recipes.exporting.packing import Packed
    from posttrain_recipes.reporting.comparing import Comparison
    from posttrain_recipes.reporting.reproduction import Reproduction
    from posttrain_recipes.running.events import Reporter


def runs(home: str | Path | None = None) -> list[Result]:
    """Every run that can be read, oldest first; the others are warned of."""
    found, unreadable = Store(default_home(home)).listed()
    for one in unreadable:
        warnings.warn(f"{one}; {one.hint}", PtlWarning, stacklevel=2)
    return [Result(record) for record in found]


def show(run: str | Result, home: str | Path | None = None) -> Result:
    """The run of that id, or the last one of the recipe of that name. Raises `UsageError`."""
    return Result(Store(default_home(home)).find(named(run)))


def compare(*runs: str | Result, home: str | Path | None = None) -> Comparison:
    """Compare runs with the first of them, in pairs where they were measured on the same records;
    one run with branches or a matrix with itself.

    Args:
        runs: results, ids, or names of recipes for their last runs.

    Returns:
        What a notebook shows as a table; `.to_frame()` is a pandas frame of it.

    Raises:
        UsageError: there is no such run.
    """
    from posttrain_recipes.reporting.comparing import Comparison

    names = list(dict.fromkeys(map(named, runs)))
    if not names:
        raise UsageError("there is nothing to compare", hint="name a run, or several")
    return Comparison(default_home(home), [show(name, home).record for name in names])


def report(
    run: str | Result, output: str | Path | None = None, *, home: str | Path | None = None
) -> Path:
    """Write a run's report, one page without a server, and return where it is.

    Args:
        run: a result, its id, or the name of a recipe for its last run.
        output: a file that ends in .html or .md; by default report.html in the run's directory.

    Raises:
        UsageError: there is no such run, or the file ends otherwise.
    """
    from posttrain_recipes.reporting.page import Pages

    pages = Pages(default_home(home), show(named(run), home).record)
    if output is None:
        return pages.write()[0]
    path = Path(output)
    ending = path.suffix.lower()
    if ending not in (".html", ".htm", ".md"):
        raise UsageError(f"{path} says no form", hint="let it end in .html or .md")
    write_atomic(path, pages.markdown() if ending == ".md" else pages.html())
    return path


def pack(
    run: str | Result,
    output: str | Path | None = None,
    *,
    data: bool = True,
    weights: bool = True,
    home: str | Path | None = None,
) -> Packed:
    """Write a run as one archive: recipe, data and functions, a lock, the report, the adapters.

    Args:
        run: a result, its id, or the name of a recipe for its last run.
        output: the new zip file; by default `RUN.zip` here.
        data: the files that the recipe names.
        weights: the adapters of its stages.

    Returns:
        `.path`, `.files`, and `.notes`: what is not in it, and what changed since the run.

    Raises:
        UsageError: there is no such run, it did not finish, or the file is there.
        PtlError: it cannot be written.
    """
    from posttrain_recipes.exporting import packing

    record = show(named(run), home).record
    path = Path(f"{record.id}.zip" if output is None else output)
    return packing.pack(record, default_home(home), path, data=data, weights=weights)


def reproduce(
    run: str | Result,
    *,
    tracking_uri: str | None = None,
    base_dir: str | Path | None = None,
    anyway: bool = False,
    home: str | Path | None = None,
    progress: bool | None = None,
    reporter: Reporter | None = None,
) -> Reproduction:
    """Run a run again from its resolved recipe, and say whether the same comes out.

    Args:
        run: a result, an id, or the id of a recipe's run in MLflow, which is all that is needed.
        tracking_uri: where MLflow has it; by default as for `run`.
        base_dir: what relative paths in the recipe start from; by default where the recipe was.
        anyway: run it although data or models have changed.
        progress, reporter: as `run` has them.

    Returns:
        `.reproduced`, `.verdicts`, `.changed`; printed, it is a table.

    Raises:
        UsageError: there is no such run, it did not finish, or what it was made of has changed.
        PtlError: the run failed.
    """
    from posttrain_recipes.planning.reuse import Scope
    from posttrain_recipes.progress import told
    from posttrain_recipes.reporting import reproduction
    from posttrain_recipes.running import runner

    then = _find(named(run), tracking_uri, home)
    if then.status != "finished":
        raise UsageError(f"run {then.id} did not finish: it is {then.status}", code="no-such-run")
    folder = None if base_dir is None else Path(base_dir)
    plan = reproduction.plan_again(then, registry.load(), folder)
    changed = list(reproduction.changes(then, plan))
    if changed and not anyway:
        raise UsageError(
            f"what {then.id} was made of has changed",
            why="; ".join(changed),
            hint="bring it back, or see what comes out all the same with --anyway (anyway=True)",
            code="changed",
        )
    with told(False if reporter else progress) as shown:
        now = runner.run(plan, default_home(home), reporter or shown, scope=Scope(fresh=True))
    return reproduction.Reproduction(then, now, changed)


def named(run: str | Result) -> str:
    """A run's id, or the name that is given. Raises `UsageError` for what is neither."""
    if isinstance(run, Result):
        return run.run_id
    if isinstance(run, Path):
        return str(run) if run.is_absolute() else f"./{run}"
    if isinstance(run, str):
        return run
    raise UsageError(
        f"a run is told by its id or a result, and by no {type(run).__name__}",
        hint="give them one by one: compare(*runs)" if isinstance(run, list | tuple) else None,
        code="wrong-value",
    )


def _find(run: str, tracking_uri: str | None, home: str | Path | None) -> RunRecord:
    from posttrain_recipes.reporting import reproduction
    from posttrain_recipes.tracking import mlstore

    if tracking_uri is None and not re.fullmatch(r"[0-9a-f]{32}", run):
        return show(run, home).record
    uri = tracking_uri or mlstore.configured_uri() or mlstore.local_uri(default_home(home))
    return reproduction.kept_in_mlflow(run, uri)

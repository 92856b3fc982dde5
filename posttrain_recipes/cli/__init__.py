"""The command line: a group whose commands are imported when they are called."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import sys
from pathlib import Path
from typing import Any

import click

from posttrain_recipes.cli import streams
from posttrain_recipes.errors import (
    DISK_FULL,
    READ_ONLY,
    PtlError,
    RecipeError,
    display_path,
    not_installed,
    unwritable,
)
from posttrain_recipes.progress import terminal
from posttrain_recipes.version import __version__

COMMANDS = {
    "init": "Write a starter recipe with its data.",
    "validate": "Check recipes: form, cross-references, data files.",
    "plan": "Show what a run would do, and what it would reuse.",
    "lock": "Write what a recipe stands on, for 'ptl run --locked'.",
    "preflight": "Look for what can go wrong before anything is spent.",
    "run": "Run a recipe, or go on with an interrupted run.",
    "eval": "Run a suite of evals on a run, a checkpoint or a model.",
    "runs": "List runs.",
    "show": "Show a run: results, samples, checkpoints.",
    "watch": "Show a run on a page that moves with it, or replay one.",
    "report": "Write a run's results, curves and replies as one page.",
    "compare": "Compare runs: what differs, results with tests, curves.",
    "pack": "Write a run as one archive that another machine reads or runs.",
    "reproduce": "Run a run again and say whether the same comes out.",
    "sync": "Copy runs to the MLflow server that lacks them.",
    "prices": "Show what hosted Tinker costs, and read the published table.",
    "gc": "Delete checkpoints that nothing names any more.",
    "ui": "Open MLflow on these runs.",
    "plugins": "List, show, check and begin what recipes can use.",
    "explain": "Explain a method, eval, dataset or reward.",
    "schema": "Print the JSON Schema of recipes.",
    "data": "Check data files.",
    "engines": "List engines, and see what a Tinker-compatible server can do.",
    "serve": "Serve the embedded engine to any Tinker or OpenAI program.",
    "chat": "Talk to a run, a checkpoint or a model.",
    "export": "Write a checkpoint as an adapter, a whole model or GGUF; push it to the hub.",
    "promote": "Register a checkpoint in MLflow's model registry.",
    "deploy": "Write an app that serves a checkpoint, for Modal.",
}
"""Every command with its summary: `ptl --help` imports none of them."""


class LazyGroup(click.Group):
    """Imports `cli.<name>` when `<name>` is called."""

    def main(self, *args: Any, **options: Any) -> Any:
        """As click's, with all that is printed shown as it is."""
        with terminal.guarded(), streams.own_warnings_as_lines():
            try:
                return super().main(*args, **options)
            except SystemExit:
                # Of a pipe that nobody reads any more click makes a failure of the command.
                if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
                    return 0
                raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"posttrain_recipes.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The summaries above, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """With the nearest command where there is no such one."""
        from difflib import get_close_matches

        name = args[0]
        if name not in COMMANDS:
            near = get_close_matches(name, list(COMMANDS), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptl")
def cli() -> None:
    """LLM post-training from YAML recipes, over the Tinker API.

    Start with: ptl init, then ptl run recipe.yaml
    """


def main() -> None:
    """The console script `ptl`: once its exit code is known, nothing changes it any more."""
    known: list[int] = []
    atexit.register(streams.end, known)  # the first that is registered is the last that runs
    try:
        called()
    except SystemExit as left:
        known.append(left.code if isinstance(left.code, int) else 1)
        raise


def called() -> None:
    """What `ptl` does, in a process that may go on; raises SystemExit."""
    streams.open_missing()
    with terminal.guarded(), streams.own_warnings_as_lines():
        try:
            code = _code()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(bool(left.code))
    streams.leave(code)


def _code() -> int:
    """Run the command; its exit code."""
    try:
        code = cli.main(prog_name="ptl", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        with contextlib.suppress(OSError, ValueError):
            terminal.show_click(error)
        return error.exit_code
    except PtlError as error:
        print_error(error)
        return error.exit_code
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == __name__.partition(".")[0]:
            raise
        print_error(not_installed(error.name))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0  # `ptl runs | head`: the reader has what it wanted
    except OSError as error:
        # A full disk, a directory that cannot be written: the system's words say it best.
        named = isinstance(error.filename, str)
        if named and error.errno in (*DISK_FULL, errno.EROFS):
            print_error(unwritable(Path(error.filename), error))
        elif named and error.errno in READ_ONLY:
            what = f"{display_path(Path(error.filename))} cannot be used"
            hint = "look whom it belongs to, and what this user may do there"
            print_error(PtlError(what, why=error.strerror, hint=hint, code="not-writable"))
        else:
            full = error.errno in DISK_FULL
            print_error(PtlError(str(error), code="out-of-disk" if full else None))
        return 1
    return code if isinstance(code, int) else 0


def print_error(error: PtlError) -> None:
    """The error for a person, on stderr."""
    if isinstance(error, RecipeError):
        streams.say(str(error))
        count = len(error.faults)
        streams.say(f"\n{count} fault{'s' if count != 1 else ''}; nothing was run.")
    else:
        streams.say(f"error: {error}")
    # Of what has no kind of its own there is nothing more to tell.
    terminal.point([code for code in error.codes if code != PtlError.code])

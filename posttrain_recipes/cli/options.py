"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from posttrain_recipes.cli.streams import for_programs
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language.recipe import said

F = TypeVar("F", bound=Callable[..., Any])


class RecipePath(click.Path):
    """A recipe's file, or the name of one that ships, of a package's or of a repository's."""

    name = "recipe"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from posttrain_recipes.language import named

        return named.find(value) or super().convert(value, param, ctx)


RECIPE = RecipePath(path_type=Path)


def recipe_options(function: F) -> F:
    """`RECIPE --preset NAME --set PATH=VALUE`."""
    for decorator in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change one option: stages.sft.method.learning_rate=1e-4. Repeatable.",
        ),
        click.option("--preset", metavar="NAME", help="One of the recipe's presets."),
        click.argument("recipe", type=RECIPE),
    ):
        function = decorator(function)
    return function


def scope_options(function: F) -> F:
    """`--fresh --from STAGE --until STAGE`, as the argument `scope`."""
    from posttrain_recipes.planning.reuse import Scope

    @click.option("--fresh", is_flag=True, help="Start from nothing, whatever earlier runs left.")
    @click.option("--from", "first", metavar="STAGE", help="Run STAGE and those after it again.")
    @click.option("--until", "last", metavar="STAGE", help="Stop after STAGE.")
    @functools.wraps(function)
    def scoped(*, fresh: bool, first: str | None, last: str | None, **rest: Any) -> Any:
        return function(scope=Scope(fresh, first, last), **rest)

    return scoped  # type: ignore[return-value]


def home_option(function: F) -> F:
    """`--home DIR`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where runs are kept. [default: $PTL_HOME or ./.ptl]",
    )(function)


def again(context: click.Context, *, without: Sequence[str] = ()) -> str:
    """The command that was given, as a person types it; a key in a `--set` is not repeated.

    Args:
        without: parameters that are left out, as those that ask for a new beginning.
    """
    words, arguments = ["ptl", context.info_name or ""], []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if name in without or not given:
            continue
        value = context.params[name]
        several = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs < 0
        values = list(value) if several else [value]
        if isinstance(parameter, click.Argument):
            arguments += [str(one) for one in values]
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0])
        else:
            shown = [said(str(one)) if name == "overrides" else str(one) for one in values]
            words += [word for one in shown for word in (parameter.opts[0], one)]
    return shlex.join([*words[:2], *arguments, *words[2:]])


def check_ending(output: Path, endings: Sequence[str], hint: str | None = None) -> None:
    """Raise UsageError for a file that would not be what its name says."""
    if output.suffix.lower() not in endings:
        raise UsageError(
            f"{output} cannot be written as what its name ends in",
            why=f"there is {', '.join(endings)}",
            hint=hint,
        )


def check_host(host: str) -> None:
    """Raise UsageError, which does not repeat it, for what is neither a name nor an IP address."""
    if not re.fullmatch(r"[\w.-]*|[0-9A-Fa-f:.]+(%[\w.-]+)?", host):
        raise UsageError(
            "--host is no host", hint="give a name or an IP address alone: 127.0.0.1, ::1, 0.0.0.0"
        )


def secret_option(name: str, variable: str, what: str) -> Callable[[F], F]:
    """`--NAME VALUE` and `--NAME-file FILE`, as the argument `name`: a secret.

    Its place is a file or the environment: what stands on a command line can be read by everybody
    on the machine (`ps`), so that is warned of.

    Args:
        variable: the environment variable that it is taken from otherwise.
        what: what it is, for --help.
    """
    argument = name.replace("-", "_")

    def warned(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value and context.get_parameter_source(argument) is ParameterSource.COMMANDLINE:
            click.echo(
                f"warning: everybody on this machine can read --{name} in the list of processes; "
                f"set {variable} or give --{name}-file",
                err=True,
            )
        return value

    def decorate(function: F) -> F:
        @click.option(
            f"--{name}-file",
            "secret_file",
            type=click.Path(path_type=Path),
            help="Read it from this file, where no `ps` shows it.",
        )
        @click.option(f"--{name}", argument, envvar=variable, callback=warned, help=what)
        @functools.wraps(function)
        def with_secret(*, secret_file: Path | None, **rest: Any) -> Any:
            if secret_file is not None:
                rest[argument] = _first_line(secret_file, f"--{name}-file")
            if (given := rest[argument]) and not (given.isascii() and given.isprintable()):
                raise UsageError(
                    f"the {name} has characters that no request can carry",
                    hint=f"look at ${variable}, or the file: is there a line too many?",
                )
            return function(**rest)

        return with_secret  # type: ignore[return-value]

    return decorate


def _first_line(file: Path, option: str) -> str:
    try:
        lines = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UsageError(
            f"cannot read {option} {file}", why=error.strerror, code="no-such-file"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"cannot read {option} {file}", why="it is no text") from None
    if len(lines) != 1:
        raise UsageError(f"{option} {file} holds {len(lines)} words, and has to hold one")
    return lines[0]


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=for_programs,
    help="Print JSON for programs.",
)


def _columns(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    from posttrain_recipes.datasets.formats import column_problems

    columns = {}
    for value in values:
        ours, equals, theirs = value.partition("=")
        if not (ours and equals and theirs):
            raise click.BadParameter(f"'{value}' must read OURS=THEIRS, as prompt=question")
        columns[ours] = theirs
    if problems := column_problems(columns):
        raise click.BadParameter("; ".join(problems))
    return columns


columns_option = click.option(
    "--columns",
    multiple=True,
    metavar="OURS=THEIRS",
    callback=_columns,
    help="A field under another name, as prompt=question; may be repeated.",
)

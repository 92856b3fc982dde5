"""A secret is read from a file or the environment; on a command line it is warned of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from posttrain_recipes.cli.chat import chat
from posttrain_recipes.cli.options import secret_option
from posttrain_recipes.cli.serve import serve
from posttrain_recipes.errors import UsageError

Ask = Callable[..., Result]


@click.command()
@secret_option("the-key", "SOME_KEY", "A key.")
def told(the_key: str | None) -> None:
    click.echo(f"key: {the_key}")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.delenv("SOME_KEY", raising=False)
    return lambda *words, **env: CliRunner().invoke(told, words, env=env or None)


def test_where_a_secret_comes_from(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("tml-from-file\n")
    assert ask().output == "key: None\n"
    assert ask(SOME_KEY="tml-from-env").output == "key: tml-from-env\n"
    assert ask("--the-key-file", str(file)).output == "key: tml-from-file\n"
    assert ask("--the-key-file", str(file), SOME_KEY="x").output == "key: tml-from-file\n"
    given = ask("--the-key", "tml-given")
    assert given.stdout == "key: tml-given\n"
    assert given.stderr == (
        "warning: everybody on this machine can read --the-key in the list of processes; set "
        "SOME_KEY or give --the-key-file\n"
    )


def test_a_file_that_holds_no_secret(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "key"
    missing = ask("--the-key-file", str(file))
    assert isinstance(missing.exception, UsageError)
    assert "cannot read --the-key-file" in str(missing.exception.what)
    file.write_text("two words")
    two = ask("--the-key-file", str(file))
    assert isinstance(two.exception, UsageError)
    assert "holds 2 words" in two.exception.what


@pytest.mark.parametrize("command", [serve, chat])
def test_commands_with_a_secret_take_it_from_a_file(command: click.Command) -> None:
    names = {option for parameter in command.params for option in parameter.opts}
    assert {"--token-file", "--api-key-file"} & names

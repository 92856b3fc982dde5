"""`ptl chat`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from posttrain_recipes.cli.options import home_option, secret_option
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.inference import conversation
from posttrain_recipes.options import check_address
from posttrain_recipes.progress.terminal import exact, styled, unguarded
from posttrain_recipes.shown import redact
from posttrain_recipes.store import default_home

HELP = """\
/system TEXT   say who the model is, and start over (alone: nobody)
/reset         forget what was said
/exit          leave; Ctrl-D does too. Ctrl-C stops a reply
Alt-Enter      begins a new line (where prompt-toolkit is installed)"""
COMMANDS = ["/system", "/reset", "/help", "/exit"]


@click.command()
@click.argument("target", required=False, metavar="[TARGET]")
@click.option("--prompt", "-p", help="Ask this, print the reply and end; so does piped input.")
@click.option("--system", help="A system message to begin with.")
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(0, 2))
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="The same seed gives the same reply.")
@click.option("--base-url", help="Any OpenAI-compatible server, such as 'ptl serve' elsewhere.")
@secret_option("api-key", "OPENAI_API_KEY", "The server's key. [default: $OPENAI_API_KEY]")
@home_option
def chat(
    target: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    base_url: str | None,
    api_key: str | None,
    home: Path | None,
) -> None:
    """Talk to a model in the terminal.

    TARGET is a run (sft_then_dpo-1), one of its stages (sft_then_dpo-1/sft), a tinker:// path, or
    a model: bundled, a directory, or a hub id. Without one it is the last run.
    """
    check_address(base_url, "--base-url")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UsageError("there is nothing to ask", hint="give --prompt TEXT, or pipe it in")
    with conversation.begin(
        target,
        default_home(home),
        system=system,
        base_url=base_url,
        api_key=api_key,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    ) as talk:
        if prompt is None:
            _converse(talk)
            return
        for part in talk.say(prompt):
            exact(part)
        click.echo()


def _converse(talk: conversation.Talk) -> None:
    ask = _asker()
    styled(f"{talk.said}   /help for commands, Ctrl-D to leave", dim=True)
    while True:
        try:
            text = ask().strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if text in ("/exit", "/quit"):
            return
        if text.startswith("/"):
            _command(talk, text)
        elif text:
            _reply(talk, text)


def _asker() -> Callable[[], str]:
    """How the next question is read: in a terminal by prompt_toolkit, where it is installed."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            return _session()
    with suppress(ImportError):  # lines can be edited, and the last ones recalled
        import readline  # noqa: F401
    return lambda: input("> ")


def _session() -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ",
        completer=WordCompleter(COMMANDS, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        output=create_output(unguarded(sys.stdout)),
        prompt_continuation="  ",
    )
    return session.prompt


def _command(talk: conversation.Talk, text: str) -> None:
    word, _, rest = text.partition(" ")
    if word in ("/reset", "/system"):
        talk.reset()
        if word == "/system":
            talk.system = rest.strip() or None
    else:
        styled(HELP, dim=True)


def _reply(talk: conversation.Talk, text: str) -> None:
    parts = talk.say(text)
    try:
        for part in parts:
            exact(part)
        click.echo()
    except KeyboardInterrupt:
        parts.close()  # type: ignore[attr-defined]
        styled(" (stopped)", dim=True)
    except PtlError as error:
        hint = "\n/reset forgets what was said" if "context window" in str(error) else ""
        styled(redact(f"{error}{hint}"), fg="red" if "NO_COLOR" not in os.environ else None)

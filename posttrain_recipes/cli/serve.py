"""`ptl serve`."""

from __future__ import annotations

import errno
import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import click

from posttrain_recipes import private, sdk
from posttrain_recipes.atomic import require_writable
from posttrain_recipes.cli.options import check_host, home_option, secret_option
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.store import default_home


def _loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _substitutes(given: tuple[str, ...]) -> dict[str, str]:
    """Losses and what is computed in their place, from LOSS=LOSS. Raises UsageError."""
    from posttrain_recipes.engine.core.provenance import SUBSTITUTES

    found: dict[str, str] = {}
    for text in given:
        name, _, other = text.partition("=")
        if other not in SUBSTITUTES.get(name, ()):
            known = [f"{name}={other}" for name, others in SUBSTITUTES.items() for other in others]
            raise UsageError(
                f"--substitute {text}: there is no such substitute",
                why="a loss stands in only for one that this engine does not have, and that gives "
                "it all that it reads",
                hint=f"one of {', '.join(known)}",
            )
        found[name] = other
    return found


@click.command()
@click.option(
    "--model",
    "served",
    multiple=True,
    metavar="MODEL",
    help="A model to offer: bundled, local directory or hub id; NAME=DIRECTORY renames it. "
    "[default: the bundled ones]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8765, show_default=True, help="Port; 0 takes a free one.")
@secret_option(
    "token",
    "PTL_ENGINE_TOKEN",
    "The key clients must show; starts with tml-. [default: $PTL_ENGINE_TOKEN, or a new one]",
)
@click.option(
    "--only-served/--any-model",
    default=None,
    help="Whether clients may name the offered models alone, or any directory and hub id too, "
    "which is then read or downloaded. [default: --any-model on 127.0.0.1, else --only-served]",
)
@click.option(
    "--chat-template",
    metavar="FILE|NAME",
    help="In place of the models' own, as 'renderer: {chat_template: ...}' of a recipe.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="The numbers that models are held and multiplied in; auto as 'engine: {dtype: auto}' of a "
    "recipe, by the first model offered.",
)
@click.option(
    "--substitute",
    "substituted",
    multiple=True,
    metavar="LOSS=LOSS",
    help="Compute the second loss where a program asks for the first, which this engine does not "
    "have: stable_reinforce=ppo. Told in the log, in the metrics of each pass, and in the list of "
    "capabilities.",
)
@click.option(
    "--like",
    type=click.Choice(["hosted"]),
    help="For tests: a double of hosted Tinker, as public words have it. What comes with samples "
    "is noisy and repeats itself, ranks and top-k are bounded, requests meet 402, 408, 409, 429.",
)
@click.option(
    "--sample-only",
    multiple=True,
    metavar="MODEL",
    help="With --like hosted: an offered model that can be sampled from, and not be trained.",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Checkpoints. [default: HOME/engine]"
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning"]),
    default="info",
    show_default=True,
    help="Requests are logged at info; polls and heartbeats at debug.",
)
@home_option
def serve(
    served: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    only_served: bool | None,
    chat_template: str | None,
    dtype: Literal["auto", "float32", "bfloat16"],
    substituted: tuple[str, ...],
    like: str | None,
    sample_only: tuple[str, ...],
    data_dir: Path | None,
    log_level: str,
    home: Path | None,
) -> None:
    """Serve the embedded engine to any program of the Tinker SDK, and of OpenAI's.

    /metrics is for Prometheus, /healthz for whoever watches. Ctrl-C, or SIGTERM, finishes what is
    accepted and ends.
    """
    check_host(host)
    if not _loopback(host) and not token:
        raise UsageError(
            f"--host {host} is reachable from other machines",
            hint="set PTL_ENGINE_TOKEN, give --token-file, or listen on 127.0.0.1",
        )
    if token and not (token.startswith("tml-") and len(token) >= 16):
        raise UsageError(
            "the token must start with 'tml-' and have 16 characters or more",
            why="the SDK refuses to send any other key, and a short one can be guessed",
        )
    sdk.check()
    substitutes = _substitutes(substituted)
    if sample_only and not like:
        raise UsageError("--sample-only goes with --like hosted", hint="give both")
    template = None
    if chat_template is not None:
        from posttrain_recipes.planning.renderers import TemplateError, read

        try:
            template = read(chat_template, Path())
        except TemplateError as error:
            raise UsageError(f"--chat-template: {error}") from None
    import torch  # noqa: F401 - told of by its own name, and not by who imports it first

    from posttrain_recipes.engine.__main__ import run_server
    from posttrain_recipes.engine.core.hosted import HostedDouble
    from posttrain_recipes.engines import Local
    from posttrain_recipes.inference import serving

    key = token or f"tml-{secrets.token_urlsafe(24)}"
    offered = serving.named_models(served, "--model")
    if unknown := [name for name in sample_only if name not in offered]:
        there = ", ".join(offered)
        raise UsageError(f"--sample-only {unknown[0]}: it is not offered", hint=f"one of {there}")
    engine = Local(Local.Config(dtype=dtype))
    first = Path(next(iter(offered.values())))
    told = engine.settle(first if first.is_dir() else None, measure=True)
    closed = not _loopback(host) if only_served is None else only_served
    directory = data_dir or (home or default_home()) / "engine"

    def announce(base_url: str) -> None:
        click.echo(f"serving {', '.join(offered)} at {base_url}; checkpoints in {directory}")
        for name, where in offered.items():
            if where != name and Path(where).is_dir():
                click.echo(f"{name} is {Path(where).resolve()}")
        if told:
            click.echo(told.removeprefix("engine: "))
        if like:
            click.echo("a double of hosted Tinker, for tests: samples are noisy, requests fail")
        for name, other in substitutes.items():
            click.echo(f"where a program asks for {name}, {other} is computed")
        if closed:
            click.echo("no other base model is served (--any-model serves all)")
        click.echo("in the shell of the program:")
        click.echo(f"  export TINKER_BASE_URL={base_url}")
        click.echo(f"  export OPENAI_BASE_URL={base_url}/v1")
        if token:  # it may be logged or looked at where its owner did not mean it to be
            click.echo("  and TINKER_API_KEY and OPENAI_API_KEY: the token that it was given")
        else:
            click.echo(f"  export TINKER_API_KEY={key} OPENAI_API_KEY={key}")

    private.tighten(default_home(home))
    with private.files():
        require_writable(directory)
    import logging

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("posttrain_recipes").setLevel(log_level.upper())
    try:
        run_server(
            offered,
            directory,
            key,
            host=host,
            port=port,
            on_ready=announce,
            only_served=closed,
            chat_template=template,
            dtype=engine.dtype,
            substitutes=substitutes,
            double=HostedDouble(frozenset(sample_only)) if like else None,
        )
    except OSError as error:  # of the address: that of the directory was looked at
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise PtlError(
            f"cannot serve on {host}:{port}",
            why=error.strerror or str(error),
            hint="take another --port; 0 is free" if taken else "give another --host",
        ) from None

"""`ptl deploy`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option
from posttrain_recipes.cli.streams import say
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.exporting import modal_app, vllm
from posttrain_recipes.exporting.checkpoint import Found, fetched
from posttrain_recipes.exporting.placing import new_directory, written
from posttrain_recipes.exporting.writing import Form, write_into
from posttrain_recipes.options import check_address
from posttrain_recipes.store import default_home
from posttrain_recipes.waiting import ended_politely


@click.command()
@click.argument("target")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--modal", is_flag=True, help="As an app for Modal (modal.com), with vLLM.")
@click.option(
    "--merge",
    is_flag=True,
    help="Serve a whole model, the adapter merged into its base: faster, and needed where the base "
    "is not on the hub.",
)
@click.option("--gpu", default=modal_app.GPU, show_default=True, help="The GPU to serve on.")
@click.option(
    "--base-url",
    metavar="URL",
    help="The service that has the checkpoint, with its key in TINKER_API_KEY. [default: that of "
    "the run, or this machine]",
)
@home_option
def deploy(
    target: str,
    directory: Path | None,
    modal: bool,
    merge: bool,
    gpu: str,
    base_url: str | None,
    home: Path | None,
) -> None:
    """Write a program to DIRECTORY that serves a checkpoint, and one that asks it.

    TARGET is as that of 'ptl export'. DIRECTORY is RUN-STAGE-modal where none is named.
    Nothing is uploaded: you do that, with the commands that are printed.
    """
    if not re.fullmatch(r"[A-Za-z0-9!:-]+", gpu):
        raise UsageError("--gpu names no GPU", hint="as Modal does: L40S, H100, or H100:2 for two")
    if not modal:
        raise UsageError("there is nothing to deploy to", hint="give --modal")
    check_address(base_url, "--base-url")
    click.get_current_context().with_resource(ended_politely())
    home = default_home(home)
    with fetched(target, home, base_url, say) as found:
        label = modal_app.label(
            found.run.id if found.run else found.target.model,
            found.stage if found.run else "",
        )
        directory = directory or Path(f"{label}-modal")
        new_directory(directory)
        if not merge:
            _check(found)
        served = modal_app.Served(
            label,
            None if merge else found.base,
            () if merge else tuple(vllm.rank_option(vllm.rank(found.adapter))),
            found.target.renderer.chat_template is not None,
            gpu,
        )
        directory = directory.resolve()
        weights = modal_app.MODEL if merge else modal_app.ADAPTER
        with written(directory, home) as out:
            (out / weights).mkdir()
            write_into(out / weights, found, Form(merge))
            (out / "app.py").write_text(modal_app.app(served), encoding="utf-8")
            (out / "client.py").write_text(modal_app.client(served), encoding="utf-8")
        click.echo(
            f"{found.target.said}: app.py, client.py and {weights}/ in {display_path(directory)}, "
            f"for the app {label}"
        )
        click.echo(
            "next, there: the commands that app.py begins with. It was not run on Modal here"
        )


def _check(found: Found) -> None:
    from posttrain_recipes.exporting import card

    if not card.on_hub(found.base):
        raise UsageError(
            f"the base model {found.base} is not on the hub",
            why="vLLM on Modal takes it from there",
            hint="give --merge: the whole model is written beside the app, with the commands that "
            "put it on a Modal Volume",
            code="cannot-export",
        )
    if refused := vllm.faults(found.adapter):
        raise UsageError(
            "vLLM does not serve this adapter",
            why="; ".join(refused),
            hint="give --merge",
            code="cannot-export",
        )

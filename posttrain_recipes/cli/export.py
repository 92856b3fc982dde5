"""`ptl export`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option
from posttrain_recipes.cli.streams import say
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.exporting import writing
from posttrain_recipes.exporting.writing import Form
from posttrain_recipes.options import check_address
from posttrain_recipes.store import default_home
from posttrain_recipes.waiting import ended_politely


@click.command()
@click.argument("target")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--merge", is_flag=True, help="A whole model, the adapter merged into its base.")
@click.option(
    "--gguf",
    type=click.Choice(["q8_0", "f16"]),
    help="A merged model as one GGUF file, for llama.cpp and Ollama, with a Modelfile beside it: "
    "in 8 bits (q8_0, which rounds) or 16 (f16).",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of a merged model's weights; by default that of its base. 16 bits take half the space of "
    "float32 and round the adapter.",
)
@click.option(
    "--push",
    metavar="USER/NAME",
    help="Put it on the Hugging Face hub as a new repository, with a model card made from the run. "
    "The token is that of HF_TOKEN, or of 'hf auth login'.",
)
@click.option("--private", "hidden", is_flag=True, help="Only you see what --push puts there.")
@click.option(
    "--base-url",
    metavar="URL",
    help="The service that has the checkpoint, with its key in TINKER_API_KEY. [default: that of "
    "the run, or this machine]",
)
@home_option
def export(
    target: str,
    directory: Path | None,
    merge: bool,
    gguf: str | None,
    dtype: str | None,
    push: str | None,
    hidden: bool,
    base_url: str | None,
    home: Path | None,
) -> None:
    """Write a checkpoint to DIRECTORY: a PEFT adapter, a Hugging Face model or a GGUF file.

    TARGET is a run (sft_then_dpo-1), one of its stages (sft_then_dpo-1/sft), or a tinker:// path.
    With --push, DIRECTORY may be left out. What a run left on a service is downloaded from there.
    """
    form = Form(merge, gguf, dtype)
    if directory is None and push is None:
        raise UsageError("there is no DIRECTORY to write to", hint="name a new one, or give --push")
    if hidden and push is None:
        raise UsageError(
            "--private is of what --push puts on the hub", hint="give --push USER/NAME"
        )
    check_address(base_url, "--base-url")
    click.get_current_context().with_resource(ended_politely())
    made = writing.export(
        target,
        directory,
        default_home(home),
        form,
        push=push,
        private=hidden,
        base_url=base_url,
        doing=say,
    )
    if made.path is not None:
        on = f" on {made.base}" if made.base else ""
        click.echo(f"{made.said}: {made.form}{on} in {display_path(made.path)}")
    for note in made.notes:
        click.echo(f"note: {note}")
    if made.url is not None:
        click.echo(f"{made.said}: {made.form} at {made.url}")
    if made.vllm is not None:
        click.echo(made.vllm)
    if made.console:
        click.echo(f"its training on the service: {made.console}")

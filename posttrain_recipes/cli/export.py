"""`ptl export`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from posttrain_recipes.cli.checkpoint import Found, fetched, new_directory, written
from posttrain_recipes.cli.options import check_address, home_option
from posttrain_recipes.errors import UsageError, display_path, writing
from posttrain_recipes.export import vllm
from posttrain_recipes.export.merged import ADAPTER
from posttrain_recipes.export.merged import merge as _merge
from posttrain_recipes.store import default_home


@dataclass(frozen=True)
class Form:
    """What is written."""

    merge: bool = False
    gguf: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.gguf and self.merge:
            raise UsageError("--gguf writes a merged model already", hint="leave --merge out")
        if self.dtype and not self.merge:
            raise UsageError(
                "--dtype is of the weights that --merge writes",
                hint="give --merge, or leave --dtype out"
                + ("; --gguf f16 or q8_0 says it of GGUF" if self.gguf else ""),
            )

    @property
    def said(self) -> str:
        """As a noun."""
        if self.gguf:
            return f"model (GGUF, {self.gguf})"
        return "model" if self.merge else "adapter"


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
    home = default_home(home)
    if directory is not None:
        new_directory(directory)
    if push is not None:
        from posttrain_recipes.export import hub

        hub.check(push)
    with fetched(target, home, base_url) as found, _place(directory) as place:
        notes = write(found, place, form, home)
        if directory is not None:
            on = "" if form.merge or form.gguf else f" on {found.base}"
            click.echo(f"{found.target.said}: {form.said}{on} in {display_path(place)}")
        for note in notes:
            click.echo(f"note: {note}")
        if push is not None:
            click.echo(_push(found, place, form, push, hidden, kept=directory is not None))
        if form == Form():
            click.echo(_vllm(found, push or "" if directory is None else str(directory)))
        if found.console:
            click.echo(f"its training on the service: {found.console}")


@contextlib.contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ptl-export-") as temporary:
        yield Path(temporary).resolve() / "model"


def write(found: Found, directory: Path, form: Form, home: Path) -> list[str]:
    """Write a checkpoint to a new directory, which is there whole or not at all.

    Returns:
        What is otherwise than in training, in sentences.
    """
    with written(directory, home) as out:
        return write_into(out, found, form)


def write_into(out: Path, found: Found, form: Form) -> list[str]:
    """The same to an empty directory, one file after the other."""
    if form.gguf:
        from posttrain_recipes.export import gguf

        name = found.target.said.removeprefix("tinker://")
        return gguf.write(found.adapter, out, form.gguf, name, found.target.renderer)  # type: ignore[arg-type]
    if form.merge:
        _merge(found.adapter, out, form.dtype)
    else:
        for name in ADAPTER:
            shutil.copyfile(found.adapter / name, out / name)
    template = found.target.renderer.chat_template
    if template is not None:  # it was trained with another one than its base has
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    return []


def _push(found: Found, place: Path, form: Form, name: str, hidden: bool, *, kept: bool) -> str:
    from posttrain_recipes.export import card, hub

    kind = "gguf" if form.gguf else "model" if form.merge else "adapter"
    license = card.license_of(found.base) or hub.license_of(found.base)
    made = card.write(found.run, found.stage, found.base, kind, found.target.model, license)  # type: ignore[arg-type]
    with writing(place):
        (place / "README.md").write_text(made, encoding="utf-8")
    return f"{found.target.said}: {form.said} at {hub.push(place, name, hidden, kept=kept)}"


def _vllm(found: Found, where: str) -> str:
    refused = vllm.faults(found.adapter)
    if refused:
        told = "; ".join(refused)
        return f"vLLM does not serve this adapter as it is: {told}. It serves what --merge writes"
    name = (found.run.id if found.run else "adapter").replace("/", "-")
    template = found.target.renderer.chat_template is not None
    return f"with vLLM: {vllm.command(found.adapter, found.base, name, where, template)}"

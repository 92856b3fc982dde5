"""Write a checkpoint in the form that is asked for, put it on the hub, and say how to serve it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrain_recipes.errors import PtlError, UsageError, writing
from posttrain_recipes.exporting import vllm
from posttrain_recipes.exporting.checkpoint import Found, fetched
from posttrain_recipes.exporting.merged import ADAPTER
from posttrain_recipes.exporting.merged import merge as _merge
from posttrain_recipes.exporting.placing import new_directory, written
from posttrain_recipes.options import check_address


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


@dataclass
class _Place:
    """Where it is written to."""

    path: Path
    kept: bool
    """Whether it outlasts a failure: what a person named, and what took long to make."""


@contextlib.contextmanager
def _place(directory: Path | None) -> Iterator[_Place]:
    if directory is not None:
        yield _Place(directory.resolve(), True)
        return
    temporary = tempfile.mkdtemp(prefix="ptl-export-")
    place = _Place(Path(temporary).resolve() / "model", False)
    try:
        yield place
    except PtlError:
        if not place.kept:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)


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
        from posttrain_recipes.exporting import gguf

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


@dataclass(frozen=True)
class Exported:
    """What was written, and what a person may want to know of it."""

    path: Path | None
    """The directory; None where it was only put on the hub."""
    said: str
    """What was exported: `sft_then_dpo-1/dpo`."""
    form: str
    """`adapter`, `model` or `model (GGUF, q8_0)`."""
    base: str | None
    """The base model that an adapter needs; None for a whole model."""
    notes: list[str]
    """What is otherwise than in training, in sentences."""
    url: str | None
    """Where it is on the hub."""
    vllm: str | None
    """The command that serves an adapter with vLLM, or why there is none."""
    console: str | None
    """Where hosted Tinker shows its training."""

    def __repr__(self) -> str:
        on = f" on {self.base}" if self.base else ""
        places = " and ".join(str(place) for place in (self.path, self.url) if place)
        return f"Exported({self.said}: {self.form}{on} in {places})"

    def __str__(self) -> str:
        said = repr(self)[len("Exported(") : -1]
        return "\n".join([said, *self.notes, *filter(None, (self.vllm,))])


def export(
    target: str,
    directory: Path | None,
    home: Path,
    form: Form,
    *,
    push: str | None = None,
    private: bool = False,
    base_url: str | None = None,
    doing: Callable[[str], object] = lambda what: None,
) -> Exported:
    """Write a checkpoint to a new directory, put it on the hub, or both.

    Args:
        target: a run, one of its stages, or a tinker:// path.
        directory: where to; None where it is only pushed.
        push: USER/NAME of a new repository of the Hugging Face hub.
        private: that only its owner sees it there.
        base_url: the service that has the checkpoint; None: that of the run, or this machine.
        doing: is told of what takes its time.

    Raises:
        UsageError: there is no such checkpoint, or the directory has something in it.
        PtlError: it is damaged, or cannot be fetched, written or pushed.
    """
    if directory is None and push is None:
        raise UsageError("there is no directory to write to", hint="name a new one, or push it")
    if private and push is None:
        raise UsageError("only what is pushed to the hub can be private there", hint="push it")
    check_address(base_url, "base_url")
    if directory is not None:
        new_directory(directory)
    if push is not None:
        from posttrain_recipes.exporting import hub

        hub.check(push, private)
    plain = form == Form()
    with fetched(target, home, base_url, doing) as found, _place(directory) as place:
        notes = write(found, place.path, form, home)
        place.kept |= form.merge or form.gguf is not None
        url = None if push is None else _push(found, place, form, push, private)
        return Exported(
            None if directory is None else place.path,
            found.target.said,
            form.said,
            found.base if plain else None,
            notes,
            url,
            _vllm(found, push or "" if directory is None else str(directory)) if plain else None,
            found.console,
        )


def _push(found: Found, place: _Place, form: Form, name: str, hidden: bool) -> str:
    """Where it is on the hub."""
    from posttrain_recipes.exporting import card, hub

    kind: card.Kind = "gguf" if form.gguf else "model" if form.merge else "adapter"
    license = card.license_of(found.base) or hub.license_of(found.base)
    licences = hub.data_licences(card.data_of(found.run, found.stage) if found.run else [])
    made = card.write(
        found.run,
        found.stage,
        found.base,
        kind,
        found.target.model,
        license,
        licences,
    )
    with writing(place.path):
        (place.path / "README.md").write_text(made, encoding="utf-8")
    return hub.push(place.path, name, hidden, kept=place.kept)


def _vllm(found: Found, where: str) -> str:
    refused = vllm.faults(found.adapter)
    if refused:
        told = "; ".join(refused)
        return f"vLLM does not serve this adapter as it is: {told}. It serves what --merge writes"
    name = (found.run.id if found.run else "adapter").replace("/", "-")
    template = found.target.renderer.chat_template is not None
    return f"with vLLM: {vllm.command(found.adapter, found.base, name, where, template)}"

"""`renderer:` of a stage and of a model that is named: its chat template read, and there at all.

A template's text takes the place of its file or name, so that a stage is known by what the
template says, and a run has it when the file is gone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from posttrain_recipes.language.nodes import Key
from posttrain_recipes.options import RESERVED, ModelRef, RendererConfig, asked, references
from posttrain_recipes.planning import hosted
from posttrain_recipes.planning.plans import model_location
from posttrain_recipes.pretrained import PROCESSOR
from posttrain_recipes.registry import suggest
from posttrain_recipes.training.text.jinja import template_environment
from posttrain_recipes.training.text.templates import NAMED

if TYPE_CHECKING:
    from posttrain_recipes.planning.building import Builder

T = TypeVar("T")
LONGEST = 1_000_000
"""Characters of a template; the longest of known models have some thousands."""

NONE = (
    "'{}' has no chat template (a base model?); name one: "
    "'renderer: {{chat_template: " + "|".join(NAMED) + "|FILE.jinja}}'"
)
"""What is said of a model that cannot render a conversation."""


class TemplateError(ValueError):
    """A chat template that cannot be used; what is wrong with it, in words."""


def of_stage(
    builder: Builder, data: dict[str, Any], spec: dict[str, Any], key: Key
) -> RendererConfig | None:
    """The stage's, over the recipe's; None where one has a fault."""
    merged: dict[str, Any] = {}
    where: Key = ()
    for place, given in (((), data.get("renderer")), (key, spec.get("renderer"))):
        if not isinstance(given, dict):
            continue
        merged.update(given)
        where = place if "chat_template" in given else where
        variables = given.get("template_kwargs")
        for name in RESERVED & (variables.keys() if isinstance(variables, dict) else set()):
            at = (*place, "renderer", "template_kwargs", name)
            builder.fault(at, f"'{name}' is what the template is given, not an option of it")
    try:
        found = RendererConfig.model_validate(merged)
    except (ValidationError, TypeError):
        return None  # which the schema tells
    return _read(builder, found, (*where, "renderer", "chat_template"))


def in_options(builder: Builder, config: T, key: Key) -> T:
    """Options of a plugin with the templates of the models that they name read."""
    for path, ref in references(config, ModelRef):
        if ref.renderer is not None and ref.renderer.chat_template is not None:
            at = (*key, *path, "renderer", "chat_template")
            read = _read(builder, ref.renderer, at)
            if read is not None:
                config = _with(config, path, ref.model_copy(update={"renderer": read}))
    return config


def check(builder: Builder, model: str, renderer: RendererConfig, key: Key) -> None:
    """Note a model that cannot be asked by its chat template and is given none: one of this machine
    that has none, or one of the service that needs a renderer of its own."""
    if renderer.chat_template is not None:
        return
    if why := hosted.own_renderer(builder, model):
        builder.fault(key, why, code="chat-template")
    elif _lacks(model_location(model, builder.recipe.base_dir)):
        builder.fault(key, NONE.format(model), code="chat-template")


def check_reference(builder: Builder, ref: ModelRef, model: str, key: Key) -> None:
    """The same of a model that an option names."""
    renderer = asked(ref.renderer, builder.renderer, same=model == builder.model)
    if model != builder.model or ref.renderer is not None:
        check(builder, model, renderer, (*key, "model") if ref.model else key)


def read(given: str, base_dir: Path) -> str:
    """The text of a template that is named, or lies in a file.

    Raises:
        TemplateError: there is no such template, or it is none.
    """
    place = NAMED.get(given) or base_dir / Path(os.path.expanduser(given))
    named = given.replace("-", "").replace("_", "").isalnum()
    if given not in NAMED and named and not place.exists():
        near = suggest(given, list(NAMED))
        raise TemplateError(f"unknown chat template '{given}'; {near}; or name a file")
    try:
        if place.exists() and not place.is_file():
            # A pipe or a device may have no end.
            raise TemplateError(f"{place} cannot be read: it is no file")
        with place.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise TemplateError(f"{place} is no chat template: it has over {LONGEST:,} characters")
    except TemplateError:
        raise
    except FileNotFoundError:
        raise TemplateError(f"there is no file {place}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise TemplateError(f"{place} cannot be read: {why}") from None
    _parse(text, given)
    return text


def _parse(text: str, name: str) -> None:
    from jinja2 import TemplateSyntaxError

    if not text.strip():
        raise TemplateError(f"{name} is empty")
    try:
        template_environment().parse(text)
    except TemplateSyntaxError as error:
        raise TemplateError(
            f"{name}:{error.lineno}: jinja cannot read this template: {error.message}"
        ) from None


def _read(builder: Builder, renderer: RendererConfig, key: Key) -> RendererConfig | None:
    if renderer.chat_template is None:
        return renderer
    try:
        text = read(renderer.chat_template, builder.recipe.base_dir)
    except TemplateError as error:
        builder.fault(key, str(error), code="chat-template")
        return None
    return renderer.model_copy(update={"chat_template": text})


def _lacks(location: str) -> bool:
    """Whether the files of a model in a directory have no chat template."""
    folder = Path(location)
    config = folder / "tokenizer_config.json"
    if not folder.is_dir() or not (config.is_file() or (folder / "tokenizer.json").is_file()):
        return False  # the hub's, or a tokenizer in a form of its own
    try:
        beside = folder / "chat_template.jinja"
        if beside.exists():  # tokenizers take it even where it is empty
            return not beside.read_text(encoding="utf-8").strip()
        if _keeps(folder / PROCESSOR):
            return False
        if (folder / "additional_chat_templates" / "default.jinja").exists():
            return False
        told = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False  # whoever loads it tells
    return not (isinstance(told, dict) and told.get("chat_template"))


def _keeps(file: Path) -> bool:
    """Whether a file of JSON has a chat template. Raises `OSError`, `ValueError`."""
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return isinstance(told, dict) and bool(told.get("chat_template"))


def _with(held: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy of options with `value` at `path`."""
    if not path:
        return value
    first, *rest = path
    if isinstance(held, BaseModel):
        inner = _with(getattr(held, str(first)), tuple(rest), value)
        return held.model_copy(update={str(first): inner})
    if isinstance(held, dict):
        return {**held, first: _with(held[first], tuple(rest), value)}
    made = [_with(one, tuple(rest), value) if i == first else one for i, one in enumerate(held)]
    return type(held)(made)

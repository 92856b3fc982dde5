"""Checks the weights that a recipe names: base models, checkpoints, what other stages trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import ggufs, models
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.models.registered import is_registered
from posttrain_recipes.options import ModelRef, effective, references
from posttrain_recipes.planning import registered, renderers
from posttrain_recipes.planning.plans import (
    BASE,
    PlannedStage,
    SameTokenizer,
    local_model,
    model_location,
)
from posttrain_recipes.planning.tokens import tokenizer_file
from posttrain_recipes.plugin import DataMethod, Method, Plugin
from posttrain_recipes.registry import suggest
from posttrain_recipes.shown import is_address
from posttrain_recipes.training.text.model_files import NO_TOKENIZER, has_tokenizer
from posttrain_recipes.training.text.vocabulary import Vocabulary, difference

if TYPE_CHECKING:
    from posttrain_recipes.planning.building import Builder


def check_model(builder: Builder, model: str, key: Key) -> None:
    """Note a model that is known not to be there, or keep it among those that are needed."""
    if is_address(model):
        builder.fault(key, f"is an address, and {models.WHAT}", code="bad-model")
    elif is_registered(model):
        if told := registered.check(model, key):
            builder.fault(key, told, code="bad-model")
        else:
            builder.need(model, key)
    elif model.startswith("ptl/") and model not in models.BUNDLED:
        near = suggest(model, list(models.BUNDLED))
        builder.fault(key, f"unknown bundled model '{model}'; {near}", code="bad-model")
    elif ggufs.is_gguf(model):
        file = local_model(model, builder.recipe.base_dir)
        if why := ggufs.fault(file):
            builder.fault(key, why, code="bad-model")
        else:
            builder.need(model, key)
    elif (
        models.is_path(model)
        and not (local_model(model, builder.recipe.base_dir) / "config.json").is_file()
    ):
        builder.fault(key, "there is no model directory with a config.json here", code="bad-model")
    elif models.is_path(model) and not has_tokenizer(local_model(model, builder.recipe.base_dir)):
        builder.fault(
            key, f"there is no tokenizer in this directory; {NO_TOKENIZER}", code="bad-model"
        )
    else:
        builder.need(model, key)


def start(builder: Builder, spec: dict[str, Any], index: int, names: list[Any]) -> str:
    """What a stage starts from: a stage above it, BASE, or a checkpoint; notes what is none."""
    key: Key = ("stages", index)
    earlier = [n for n in names[:index] if isinstance(n, str)]
    given = spec.get("init_from")
    if not isinstance(given, str):
        return earlier[-1] if earlier else BASE
    if given == BASE or given in earlier:
        return given
    where: Key = (*key, "init_from")
    if given.startswith("tinker://"):
        sampled = "method" not in spec and "/sampler_weights/" in given
        if given.count("/") != 4 or not (sampled or "/weights/" in given):
            builder.fault(
                where,
                "is not a training state; it reads tinker://RUN/weights/NAME"
                + (" (sampler_weights cannot be trained)" if "sampler" in given else ""),
            )
        builder.checkpoints.append(builder.place(given, where, builder.stage))
        return given
    if given == spec.get("name"):
        builder.fault(where, "a stage cannot start from itself")
    elif given in names:
        builder.fault(
            where,
            f"stage '{given}' comes later; a stage starts from one above it",
            code="unknown-name",
        )
    else:
        builder.fault(
            where,
            f"unknown stage '{given}'; {suggest(given, [BASE, *earlier])}",
            code="unknown-name",
        )
    return BASE


def meant(builder: Builder, ref: ModelRef) -> Any:
    """What tells the weights behind a reference from others."""
    if ref.stage and (stage := builder.above.get(ref.stage)):
        found = builder.stage_identity(stage)
    else:
        found = ref.checkpoint or builder.model_identity(ref.model or builder.model)
    return found if ref.renderer is None else [found, effective(ref.renderer)]


def check_reference(
    builder: Builder, made: Plugin, ref: ModelRef, path: tuple[str | int, ...], key: Key
) -> None:
    """Note what is wrong with the weights that an option of a plugin refers to."""
    where: Key = (*key, *path)
    model = ref.checkpoint or builder.model
    if ref.stage and ref.stage != BASE:
        check_earlier(builder, ref.stage, (*where, "stage"))
        stage = builder.above.get(ref.stage)
        model = stage.model if stage else builder.model
    elif ref.model:
        check_model(builder, ref.model, (*where, "model"))
        model = ref.model
    elif ref.checkpoint:
        named = (*where, "checkpoint")
        builder.checkpoints.append(
            builder.place(ref.checkpoint, named, builder.stage, samples=True)
        )
    if not ref.checkpoint and model in builder.models:
        renderers.check_reference(builder, ref, model, where)
    if path[0] not in made.reads_tokens() or model == builder.model:
        return
    if not ref.checkpoint and model not in builder.models:
        return  # it has a fault of its own
    differ = None if ref.checkpoint else builder.difference(model)
    if differ is None:
        at = builder.place(model, where)
        builder.same_tokenizer.append(
            SameTokenizer(builder.model, model, at.location, at.key, made.other_tokenizer)
        )
    elif differ:
        told = other_tokenizer(f"'{model}'", builder.model, differ, made.other_tokenizer)
        builder.fault(where, told, code="other-tokenizer")


def other_tokenizer(theirs: str, ours: str, differ: str, instead: str = "") -> str:
    """What is said of weights that cannot read the tokens of a stage's model."""
    return (
        f"{theirs} has another tokenizer than '{ours}' ({differ}), so its probabilities are of "
        f"other tokens; name a model of the same family{', ' * bool(instead)}{instead}"
    )


def difference_of(ours: str, theirs: str, base_dir: Path) -> str | None:
    """How two models' tokenizers differ, "" if they do not; None if no file here tells."""
    first, second = (tokenizer_file(model_location(name, base_dir)) for name in (ours, theirs))
    if first is None or second is None:
        return None
    if first.read_bytes() == second.read_bytes():
        return ""
    one, other = Vocabulary.of_file(first), Vocabulary.of_file(second)
    return None if one is None or other is None else difference(one, other) or ""


def check_earlier(builder: Builder, name: str, key: Key) -> bool:
    """Whether `name` is a stage above the present one; notes where not."""
    if name in builder.above:
        return True
    every = [s.get("name") for s in builder.recipe.data["stages"] if isinstance(s, dict)]
    if name in every:
        builder.fault(
            key,
            f"stage '{name}' is not above this one, so there is nothing of it yet",
            code="unknown-name",
        )
    else:
        builder.fault(
            key,
            f"unknown stage '{name}'; {suggest(name, [BASE, *builder.above])}",
            code="unknown-name",
        )
    return False


def check_adapters(builder: Builder, method: Method, key: Key) -> None:
    """Note adapters of stages above that do not fit each other, where a method works on them."""
    first: PlannedStage | None = None
    for path, ref in references(method.config, ModelRef):
        stage = builder.above.get(ref.stage or "")
        if stage is None or stage.method is None or isinstance(stage.method, DataMethod):
            continue
        if stage.model != builder.model:
            told = f"stage '{stage.name}' trains an adapter of {stage.model}, and this stage is of "
            told += f"{builder.model}: adapters fit their own base model"
            builder.fault((*key, *path), told, code="wrong-data")
            continue
        first = first or stage
        if stage.lora.parts != first.lora.parts:
            ours, theirs = (" and ".join(one.lora.parts) for one in (stage, first))
            told = f"stage '{stage.name}' adapts {ours}, and '{first.name}' {theirs}; "
            told += "give them the same 'lora:' but for its rank"
            builder.fault((*key, *path), told, code="wrong-data")

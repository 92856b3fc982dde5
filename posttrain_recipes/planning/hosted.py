"""What hosted Tinker refuses only when it is asked, told of a recipe before anything is spent.

None of it is in the SDK, nor does the service list it; each bound is from public words:

- A LoRA has a rank that is a power of two, at most 128, and 32 for a mixture of experts
  (github.com/thinking-machines-lab/tinker-cookbook/issues/9).
- Of the likeliest tokens of a position at most 20 are told
  (github.com/thinking-machines-lab/tinker-feedback/issues/64).
- Some models have a form of conversation that no chat template writes whole; tinker-cookbook has
  renderers of its own for them (`tinker_cookbook/renderers`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from posttrain_recipes import shape
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.options import AskedOf, PluginConfig, marked
from posttrain_recipes.planning import rates
from posttrain_recipes.planning.plans import model_location
from posttrain_recipes.plugin import DataMethod, LoraConfig, Method

if TYPE_CHECKING:
    from posttrain_recipes.planning.building import Builder

NAME = "tinker"
"""What recipes call it."""
RANK, RANK_OF_EXPERTS = 128, 32
LIKELIEST = 20

RENDERERS = {
    "openai/gpt-oss": "a reply has channels (harmony), of which the template drops the reasoning "
    "of earlier turns and ends the last one with another token than those before",
    "moonshotai/Kimi": "its tokenizer is code of its own (tiktoken), and its tools are declared in "
    "TypeScript",
    "thinkingmachines/Inkling": "it is rendered by the package tml-renderers, and by no template",
}
"""How names of models begin that need a renderer of their own, with why."""
_EXPERTS = re.compile(
    r"-A\d+(\.\d+)?B\b|^(openai/gpt-oss|moonshotai/Kimi|thinkingmachines/Inkling|deepseek-ai/DeepSeek-V)"
)
"""Names of mixtures of experts: `-A3B` says how many parameters a token passes."""


def is_for(builder: Builder) -> bool:
    """Whether the recipe runs there."""
    return builder.engine is not None and builder.engine.name == NAME


def own_renderer(builder: Builder, model: str) -> str | None:
    """Why a model cannot be asked by its chat template there; None where it can."""
    if not is_for(builder):
        return None
    for begins, why in RENDERERS.items():
        if model.startswith(begins):
            return (
                f"'{model}' needs a renderer of its own, and there is none of it here: {why}; name "
                "another model, or a form of your own with 'renderer: {chat_template: FILE}'"
            )
    return None


def check_rank(
    builder: Builder,
    lora: LoraConfig | None,
    spec: dict[str, Any],
    key: Key,
    method: Method | None,
    start: str,
) -> None:
    """Note a rank that the present stage's model is not trained with, where the stage makes an
    adapter: one that starts from another's goes on with that."""
    before = builder.above.get(start)
    goes_on = start.startswith("tinker://") or (before is not None and _trains(before.method))
    if lora is None or not is_for(builder) or not _trains(method) or goes_on:
        return
    rank, most, what = lora.rank, RANK, ""
    if _experts(builder):
        most, what = RANK_OF_EXPERTS, ", a mixture of experts"
    if 0 < rank <= most and not rank & (rank - 1):
        return
    own = spec.get("lora")
    given = isinstance(own, dict) and "rank" in own
    near = min(most, 1 << (rank.bit_length() - 1))
    builder.fault(
        (*key, "lora", "rank") if given else ("lora", "rank"),
        f"hosted Tinker trains {builder.model}{what}, with a rank that is a power of two, up to "
        f"{most}; {rank} would be refused when the stage begins: write {near}",
    )


def check_options(builder: Builder, config: PluginConfig, key: Key) -> None:
    """Note options of a plugin that ask for more than is told there."""
    if not is_for(builder):
        return
    for path, asked in marked(config, AskedOf.LIKELIEST):
        if isinstance(asked, int) and asked > LIKELIEST:
            builder.fault(
                (*key, *path),
                f"hosted Tinker tells the log-probabilities of at most {LIKELIEST} of the likeliest"
                f" tokens; {asked} would be refused when the stage asks: write {LIKELIEST} or less",
            )


def _trains(method: Method | None) -> bool:
    return method is not None and not isinstance(method, DataMethod)


def _experts(builder: Builder) -> bool:
    location = model_location(builder.model, builder.recipe.base_dir).partition(":")[0]
    place = rates.folder(location)
    config = shape.read_config(place) if place else {}
    return shape.has_experts(config) if config else bool(_EXPERTS.search(builder.model))

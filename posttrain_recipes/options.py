"""Options of plugins, and what an option may refer to beside plain values: weights and datasets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from posttrain_recipes.errors import UsageError
from posttrain_recipes.shown import redact

T = TypeVar("T")

REFERS_TO = "ptl:refers-to"
"""In the schema of an option: the kind of plugin that stands there, with options of its own."""


@dataclass(frozen=True)
class Renamed:
    """Marks an option that had another name, by which recipes may still call it.

    `zero_variance_groups: Annotated[str, Renamed("flat_groups")] = "drop"`

    Its fingerprint is made with that name: what was trained before is not trained again.
    """

    old: str


class Affects(StrEnum):
    """Marks what an option affects; the only source of what a stage's fingerprint is made of.

    `save_every: Annotated[int, Affects.NOTHING] = 50`

    `outcome`, which is meant where there is no mark: weights or results, whichever follows from
    where the plugin stands. A stage is trained again when it changes.
    """

    OUTCOME = "outcome"
    COST = "cost"
    """Time, tokens or money; what comes of it is the same."""
    NOTHING = "nothing"
    """Neither: how often something is shown or saved, and keys."""


class FromData(StrEnum):
    """Marks an option that the planner takes from the stage's data where the recipe names none; its
    default holds where those do not tell.

    `max_tokens: Annotated[int, FromData.REPLY_TOKENS] = 256`
    """

    REPLY_TOKENS = "reply tokens"
    """Tokens that a reply may have: as many as 95% of the answers, and a quarter more."""


class AskedOf(StrEnum):
    """Marks an option that says how much of something an engine is asked for: services bound it.

    `top_k: Annotated[int, AskedOf.LIKELIEST] = 20`
    """

    LIKELIEST = "likeliest tokens"
    """Of so many of the likeliest tokens of a position the log-probabilities."""


class FromModel(StrEnum):
    """Marks an option that is `auto` or a number: the planner puts a number in the place of `auto`
    before the options are made, so that a method sees a number alone.

    `learning_rate: LearningRate = "auto"`
    """

    LEARNING_RATE = "learning rate"
    """By hidden size, rank and the method's `family`: `posttrain_recipes.learning_rate`."""


AUTO: Literal["auto"] = "auto"
LearningRate = Annotated[Annotated[float, Field(gt=0)] | Literal["auto"], FromModel.LEARNING_RATE]
"""A peak learning rate: a number, or `auto` for what the planner finds."""


_KEY = re.compile(r"(api[_-]?key|secret|password|passwd|credential)|(^|[_-])token$", re.I)


def is_key(name: str) -> bool:
    """Whether something of that name is a key or a password, by its name."""
    return _KEY.search(name) is not None


class PluginConfig(BaseModel):
    """The options of a plugin. A string under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def renamed(cls) -> dict[str, str]:
        """Old names of options -> what they are called now."""
        return {
            mark.old: name
            for name, info in cls.model_fields.items()
            for mark in info.metadata
            if isinstance(mark, Renamed)
        }

    @model_validator(mode="before")
    @classmethod
    def _by_old_names(cls, given: Any) -> Any:
        now = cls.renamed()
        if not isinstance(given, Mapping) or not now.keys() & given.keys():
            return given
        for old in given:
            if now.get(old) in given:
                raise ValueError(
                    f"'{old}' is the old name of '{now[old]}', and both are given; keep the new one"
                )
        return {now.get(name, name): value for name, value in given.items()}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema).get("properties", {})
        for old, name in cls.renamed().items():
            if name in own:
                told = f"The old name of {name}."
                own[old] = {**own[name], "description": told, "deprecated": True}
        return schema


def NoEffect() -> Affects:
    """The former name of `Affects.NOTHING`. Deprecated."""
    return Affects.NOTHING


def affects(config: type[BaseModel]) -> dict[str, Affects]:
    """What each option of a class of options affects: its mark; nothing where its name says that it
    is a key; else the outcome."""
    return {name: _mark(name, info) for name, info in config.model_fields.items()}


def _mark(name: str, info: FieldInfo) -> Affects:
    marks = [mark for mark in info.metadata if isinstance(mark, Affects)]
    return marks[-1] if marks else Affects.NOTHING if is_key(name) else Affects.OUTCOME


def effective(config: PluginConfig) -> dict[str, Any]:
    """The options that a result depends on, as plain values: those that affect the outcome, here
    and in the options within them, by the names that they had first."""
    found: dict[str, Any] = _outcome(config, config.model_dump(mode="json"))
    return found


def _outcome(value: Any, dumped: Any) -> Any:
    """What `value` is dumped as, without options that do not affect the outcome."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        marks = affects(type(value))
        renamed = type(value).renamed() if isinstance(value, PluginConfig) else {}
        first = {name: old for old, name in renamed.items()}
        return {
            first.get(name, name): _outcome(getattr(value, name), inner)
            for name, inner in dumped.items()
            if marks.get(name) is Affects.OUTCOME
            or (name not in marks and not (is_key(name) and isinstance(inner, str)))
        }
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        inside = zip(value.values(), dumped.items(), strict=False)
        return {
            name: _outcome(one, inner)
            for one, (name, inner) in inside
            if not (is_key(name) and isinstance(inner, str))
        }
    if isinstance(value, list | tuple) and isinstance(dumped, list):
        return [_outcome(one, inner) for one, inner in zip(value, dumped, strict=False)]
    return dumped


def without_password(address: str) -> str:
    """The address. Raises `ValueError` where it has a user or a password in it, without the
    address: what is wrong with it is a secret."""
    # Wherever it stands: a password may have a slash or a question mark in it.
    if "@" in address:
        raise ValueError(
            "has a user or a password in it, which would stand in files and logs; give the key "
            "by itself, as 'api_key: ${env:NAME}'"
        )
    if redact(address, {}) != address:
        raise ValueError(
            "has a key in it, which would stand in files and logs; give it by itself, as "
            "'api_key: ${env:NAME}'"
        )
    try:
        urlsplit(address)
    except ValueError:
        raise ValueError("is no address; write it as http://host:port") from None
    return address


def check_address(address: str | None, option: str) -> None:
    """Raise UsageError, which does not repeat it, for an address with a user or password in it."""
    try:
        without_password(address or "")
    except ValueError:
        raise UsageError(
            f"the address of {option} is none, or has a user or a password in it",
            why="it would stand in messages and logs",
            hint="write http://host:port, and give the key by itself",
        ) from None


Address = Annotated[str, AfterValidator(without_password)]
"""A server's address: it is kept with runs and shown, so that no password may be in it."""


class LoraConfig(PluginConfig):
    """The low-rank adapter that is trained (Hu et al. 2021, arXiv 2106.09685); alpha is 32."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the adapter's matrices."""
    train_mlp: bool = True
    """Adapt the MLP layers."""
    train_attn: bool = True
    """Adapt the attention layers."""
    train_unembed: bool = False
    """Adapt the output embedding."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What it adapts, in words."""
        switches = {
            "attention": self.train_attn,
            "MLP": self.train_mlp,
            "output embedding": self.train_unembed,
        }
        return tuple(name for name, on in switches.items() if on)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the engine must obey: some adapt attention and MLP whatever they are told."""
        return () if self.parts == ("attention", "MLP") else ("lora:parts",)


RESERVED = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "return_dict", "return_tensors"),
        *(
            "padding",
            "truncation",
            "max_length",
            "tokenizer_kwargs",
            "return_assistant_tokens_mask",
        ),
    }
)
"""What `template_kwargs` cannot set: it is what a template, or its tokenizer, is called with."""


class RendererConfig(PluginConfig):
    """How conversations are rendered by a model's own chat template."""

    thinking: Literal["off", "on", "keep"] = "off"
    """Whether the model is asked to reason before it replies. on: the reasoning of what is learned
    is learned too; keep: it also reads what it reasoned in earlier turns, where its template can
    show that. Records whose reasoning the template leaves out are refused."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the template, as {reasoning_effort: low}."""
    chat_template: str | None = Field(default=None, min_length=1)
    """In place of the model's own: a Jinja file, relative to the recipe, or one of chatml, llama3,
    zephyr and alpaca. Known by what it says: a stage is trained again when the file changes."""

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What was trained before there was this option is known as it was.
        found: dict[str, Any] = dump(self)
        return found if self.chat_template is not None else _without(found, "chat_template")

    @model_validator(mode="after")
    def _variables_are_its_own(self) -> RendererConfig:
        if wrong := sorted(RESERVED & self.template_kwargs.keys()):
            raise ValueError(f"template_kwargs: '{wrong[0]}' is no variable of a template's own")
        return self

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is rendered with."""
        return {**_THINKING[self.thinking], **self.template_kwargs}


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def asked(own: RendererConfig | None, stage: RendererConfig, *, same: bool) -> RendererConfig:
    """How a model that an option names is asked: as it says, else as its stage's model is.

    Args:
        own: the `renderer` of the reference.
        stage: the stage's.
        same: whether it has the stage's base model: only then the stage's chat template is its own.
    """
    found = own or stage
    template = found.chat_template if own else None
    if template is None and same:
        template = stage.chat_template
    return found.model_copy(update={"chat_template": template})


AS_EVER = RendererConfig()
"""Without reasoning, and the template's own defaults."""
_THINKING: dict[str, dict[str, bool]] = {
    "off": {"enable_thinking": False, "thinking": False},
    "on": {"enable_thinking": True, "thinking": True},
    "keep": {
        "enable_thinking": True,
        "thinking": True,
        "preserve_thinking": True,
        "clear_thinking": False,
        "truncate_history_thinking": False,
    },
}
"""What `thinking` sets in a template, by the names that model families give to it."""


class ModelRef(PluginConfig):
    """Weights to sample from, such as a teacher, a judge or a reference: exactly one of these.

    An option of this type is found by the planner: the stage has to be an earlier one, its
    checkpoint is part of the fingerprint, and `resolve` of the context turns it into a sampler.
    """

    stage: str | None = None
    """An earlier stage, whose checkpoint is meant, or `base`: the stage's model, untrained."""
    model: str | None = None
    """A model by name, as in the recipe's `model:`."""
    checkpoint: str | None = None
    """Saved sampler weights: tinker://RUN/sampler_weights/NAME."""
    renderer: RendererConfig | None = None
    """How it is asked, as {thinking: on}; by default as the stage's own model. The stage's
    chat_template is meant for models of the same base alone."""

    @model_validator(mode="after")
    def _is_one(self) -> ModelRef:
        given = [name for name in ("stage", "model", "checkpoint") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "names weights by exactly one of 'stage', 'model' and 'checkpoint', as in "
                "{stage: sft}"
            )
        if self.checkpoint and not (
            self.checkpoint.startswith("tinker://") and "/sampler_weights/" in self.checkpoint
        ):
            raise ValueError("'checkpoint' reads tinker://RUN/sampler_weights/NAME")
        return self


class DatasetRef(PluginConfig):
    """A dataset inside another plugin's options: `use:` and that dataset's own options."""

    model_config = ConfigDict(extra="allow")

    use: str

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {REFERS_TO: "dataset"}


class RewardRef(PluginConfig):
    """A reward inside another plugin's options: `use:` and that reward's own options."""

    model_config = ConfigDict(extra="allow")

    use: str

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {REFERS_TO: "reward"}


def marked(config: Any, mark: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """The value of every option that has a mark, with its path, in the order of the fields."""
    fields = type(config).model_fields if isinstance(config, BaseModel) else {}
    for key, value in _inside(config):
        if key in fields and mark in fields[key].metadata:
            yield (key,), value
        for path, found in marked(value, mark):
            yield (key, *path), found


def references(config: Any, kind: type[T]) -> Iterator[tuple[tuple[str | int, ...], T]]:
    """Every reference of `kind` in the options, with its path, in the order of the fields."""
    if isinstance(config, kind):
        yield (), config
        return
    for key, value in _inside(config):
        if not isinstance(value, _PLAIN):
            for path, found in references(value, kind):
                yield (key, *path), found


_PLAIN = (str, int, float, type(None))
"""What no reference stands in."""


def _inside(config: Any) -> Iterator[tuple[Any, Any]]:
    """What stands right in options, a mapping or a list, by its name, key or place."""
    if isinstance(config, BaseModel):
        yield from ((name, getattr(config, name)) for name in type(config).model_fields)
    elif isinstance(config, Mapping):
        yield from config.items()
    elif isinstance(config, list | tuple):
        yield from enumerate(config)


def summaries(table: Mapping[str, Callable[..., Any]]) -> str:
    """The values of an option and what each is: the first lines of their docstrings."""
    first = {name: inspect.cleandoc(f.__doc__ or "").splitlines()[0] for name, f in table.items()}
    return "; ".join(f"{name}: {line.rstrip('.')}" for name, line in first.items())

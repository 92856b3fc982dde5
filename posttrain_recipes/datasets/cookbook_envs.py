"""From an environment of tinker-cookbook to an episode.

An `Env` reads and writes tokens through the renderer that it is made with. The one that it is given
here has characters for tokens: an observation is a conversation as JSON, an action is the text that
the policy wrote. So messages come out and text goes in, and the policy's own renderer makes tokens
of them, as in every environment; a `MessageEnv` is played through the cookbook's own bridge.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from inspect import isawaitable, signature
from typing import Any, TypeVar

import tinker
from tinker_cookbook.renderers import register_renderer
from tinker_cookbook.renderers.base import Message as CookbookMessage
from tinker_cookbook.renderers.qwen3 import Qwen3InstructRenderer
from tinker_cookbook.rl.message_env import EnvFromMessageEnv, MessageEnv
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    InitialObservationOverflow,
    RLDataset,
    RLDatasetBuilder,
)
from tinker_cookbook.tokenizer_utils import register_tokenizer

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Episode, Message, Turn
from posttrain_recipes.records import ROLES

T = TypeVar("T")
NAME = "ptl"
"""What the renderer and its tokenizer are called among the cookbook's."""
END = "<|im_end|>"
END_TOKEN = 0x110000
"""Beyond every character."""


class Characters:
    """A tokenizer whose tokens are characters."""

    name_or_path = NAME

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [END_TOKEN] if text == END else [ord(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(END if token == END_TOKEN else chr(token) for token in tokens)


class MessageRenderer(Qwen3InstructRenderer):
    """Renders a conversation as JSON, and reads what the policy wrote.

    Tool calls are read and told of in the form that Qwen's models, and many others, were taught:
    `<tool_call>{"name": ..., "arguments": ...}</tool_call>`.
    """

    def build_generation_prompt(
        self, messages: list[CookbookMessage], role: str = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        if prefill:
            raise UsageError(
                "an environment begins the reply itself (prefill), which ptl cannot",
                code="bad-function",
            )
        told = json.dumps([_plain(message) for message in messages])
        return tinker.ModelInput.from_ints(self.tokenizer.encode(told))


def _plain(message: CookbookMessage) -> tuple[str, str]:
    """The role and the text of a message."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = ""
    for part in parts:
        if part["type"] not in ("text", "thinking"):
            raise UsageError(
                f"a message has a part of type '{part['type']}'; ptl reads text alone",
                code="bad-function",
            )
        text += part.get("text", "")
    for call in message.get("tool_calls") or ():
        said = {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        text += f"\n<tool_call>\n{json.dumps(said)}\n</tool_call>"
    # Some of its environments call the policy by another name, as 'player'.
    return (message["role"] if message["role"] in ROLES else "assistant"), text.strip()


@cache
def _renderer() -> MessageRenderer:
    register_tokenizer(NAME, Characters)
    register_renderer(NAME, lambda tokenizer, image_processor: MessageRenderer(tokenizer))
    renderer = MessageRenderer(Characters())
    renderer._renderer_name = renderer._model_name = NAME
    return renderer


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop in which every environment lives, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="cookbook", daemon=True).start()
    return loop


def _wait(doing: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(doing, _loop()).result()


async def _settled(value: Any) -> Any:
    return await value if isawaitable(value) else value


def made(
    function: Callable[..., Any], arguments: Mapping[str, Any], split: str
) -> Iterator[Callable[[], Env]]:
    """What makes the environment of each task.

    Raises:
        UsageError: what the function returns is no such thing.
    """
    renderer = _renderer()
    handed = [renderer] if next(iter(signature(function).parameters), "") == "renderer" else []
    try:
        found = _wait(_settled(function(*handed, **arguments)))
        if isinstance(found, RLDatasetBuilder):
            found = _wait(found())[split == "test"]
    except Exception as error:  # it is the user's, and may do anything
        raise UsageError(
            f"'{function.__name__}' makes no environments",
            why=f"{type(error).__name__}: {error}",
            code="bad-function",
        ) from error
    if found is None:
        raise UsageError(
            f"'{function.__name__}' makes no environments for 'split: {split}'",
            code="bad-function",
        )
    if isinstance(found, RLDataset):
        dataset = found
        found = (one for index in range(len(dataset)) for one in dataset.get_batch(index))
    if not isinstance(found, Iterable):
        raise UsageError(
            f"it returns a {type(found).__name__}",
            hint="return a list of functions that each make a MessageEnv or an Env, a list of "
            "EnvGroupBuilders, or an RLDataset",
            code="bad-function",
        )
    for one in found:
        if isinstance(one, EnvGroupBuilder):
            yield partial(_first, _single(one))
        elif callable(one):
            yield partial(_made, one)
        else:
            raise UsageError(
                f"it returns {type(one).__name__} objects",
                hint="an environment is played once, and a task is begun many times: return "
                "functions that make it, as functools.partial(MyEnv, question)",
                code="bad-function",
            )


def _made(make: Callable[[], Any]) -> Env:
    return _bridged(_wait(_settled(make())))


def _single(builder: EnvGroupBuilder) -> EnvGroupBuilder:
    """The builder, where its environments can be played one by one."""
    kind = type(builder)
    idle = (EnvGroupBuilder, ProblemGroupBuilder)
    for hook, does in (
        ("compute_group_rewards", "compares the episodes of a group"),
        ("cleanup", "cleans up after a group"),
    ):
        if getattr(kind, hook) not in [getattr(base, hook) for base in idle]:
            raise UsageError(
                f"{kind.__name__} {does} ({hook}), and ptl plays its environments one by one",
                hint="give the environment itself, with its own reward and end",
                code="bad-function",
            )
    return builder


def _first(builder: EnvGroupBuilder) -> Env:
    envs = _wait(builder.make_envs())
    if len(envs) != 1:
        raise UsageError(
            f"{type(builder).__name__} makes groups of {len(envs)} environments",
            hint="have it make one: the method's group_size says how often each is played",
            code="bad-function",
        )
    return _bridged(envs[0])


def _bridged(env: Any) -> Env:
    """The environment, speaking to our renderer and without bounds on tokens, which are ours."""
    if isinstance(env, MessageEnv):
        return EnvFromMessageEnv(_renderer(), env)
    if not isinstance(env, Env):
        raise UsageError(
            f"a {type(env).__name__} is no Env and no MessageEnv of tinker-cookbook",
            code="bad-function",
        )
    if isinstance(env, EnvFromMessageEnv):
        env.renderer, env.max_trajectory_tokens = _renderer(), None
    return env


class CookbookEpisode(Episode):
    """An environment of tinker-cookbook at play."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.steps: defaultdict[str, list[float]] = defaultdict(list)
        """What each step told, by name."""
        began = _wait(env.initial_observation())
        if isinstance(began, InitialObservationOverflow):
            raise UsageError(
                "an environment's first prompt is too long for its own bounds",
                code="bad-function",
            )
        self.heard = _messages(began[0])
        """The conversation as the environment last told it."""
        self.next: Turn | None = Turn(self.heard)

    def turn(self) -> Turn | None:
        """What is new in the conversation; all of it where the environment rewrote it."""
        return self.next

    def act(self, reply: str) -> Sequence[float]:
        """What the environment gives for the reply."""
        action = [ord(character) for character in reply]
        if not self.truncated:
            action.append(END_TOKEN)
        reason = "length" if self.truncated else "stop"
        step = _wait(self.env.step(action, extra={"stop_reason": reason}))
        for name, value in step.metrics.items():
            self.steps[name].append(float(value))
        self.next = None if step.episode_done else self._told(_messages(step.next_observation))
        return [float(step.reward)]

    def _told(self, now: tuple[Message, ...]) -> Turn:
        before, self.heard = self.heard, now
        said, new = now[len(before) : len(before) + 1], now[len(before) + 1 :]
        goes_on = (
            now[: len(before)] == before
            and [one.role for one in said] == ["assistant"]
            and all(one.role != "assistant" for one in new)
        )
        return Turn(new) if goes_on else Turn(now, fresh=True)

    def metrics(self) -> Mapping[str, float]:
        """The mean over the steps that told of it, as tinker-cookbook logs them."""
        return {name: sum(told) / len(told) for name, told in self.steps.items()}


def _messages(observation: tinker.ModelInput) -> tuple[Message, ...]:
    try:
        told = json.loads(Characters().decode(observation.to_ints()))
        return tuple(Message(role, text) for role, text in told)
    except (ValueError, TypeError):
        raise UsageError(
            "an environment writes its observations with a renderer of its own",
            hint=f"make it with the renderer that the function is handed (a first parameter "
            f"'renderer'), or with get_renderer('{NAME}', get_tokenizer('{NAME}'))",
            code="bad-function",
        ) from None

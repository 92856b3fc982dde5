"""Prompts that may be answered with the help of tools: an environment of functions."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, validate_call

from posttrain_recipes.conversion import convert
from posttrain_recipes.functions import UserFunction, checked_call, parameters
from posttrain_recipes.plugin import (
    Affects,
    Dataset,
    DatasetConfig,
    DatasetRef,
    Episode,
    Message,
    Prompt,
    Record,
    Reward,
    RewardRef,
    Sample,
    Task,
    Turn,
    UsageError,
)
from posttrain_recipes.training.rl.scoring import scores_of
from posttrain_recipes.waiting import in_thread

JSON_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Tools(Dataset):
    """Prompts that may be answered with the help of tools, which are functions of yours.

    An environment. A reply that calls a tool is answered with what it returns, as a message of the
    role `tool`; the first reply that calls none is the answer, and `reward` says what it is worth.
    """

    name = "tools"

    class Config(DatasetConfig):
        """Options of prompts with tools."""

        data: DatasetRef
        """The prompts, written as a `dataset:` is."""
        tools: list[Annotated[str, AfterValidator(checked_call)]] = Field(min_length=1)
        """The functions, each as module:function; async ones too."""
        reward: RewardRef
        """What the answer is worth."""
        format: Literal["json", "tag"] = "json"
        """How a tool is called: json, <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>
        as Qwen's models and others are taught; tag, <add>1</add> for functions of one text."""
        describe: bool = True
        """Tell the model of the tools, in its system message."""
        max_calls: int = Field(default=4, ge=1)
        """Calls in one episode; a reply that would make more counts as the answer."""
        max_result: int = Field(default=1000, ge=1)
        """Longest result in characters; what is beyond is cut off."""
        timeout: Annotated[float, Affects.COST] = Field(default=10.0, gt=0)
        """Seconds that a call may take."""

    config: Config

    @property
    def data(self) -> Dataset:
        """The prompts."""
        return self.sources["data"][0]

    @cached_property
    def _functions(self) -> list[UserFunction]:
        return [UserFunction(call, self.base_dir) for call in self.config.tools]

    def record_type(self) -> type[Record]:
        """Tasks."""
        return Task

    def size(self) -> int | None:
        """As many as there are prompts."""
        return self.data.size()

    def bind(self, made: Callable[[str], Any], wants: type[Record]) -> None:
        """Its data are prompts, whatever is wanted of it."""
        super().bind(made, Prompt)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Functions that are not there, rewards that cannot be asked here, and a split inside."""
        if self.sources.get("data") and self.data.config.test_size:
            yield "data", "the data has 'test_size'; say it of the tools as a whole"
        if (reward := self.rewards.get("reward")) and reward.asks_model:
            yield "reward", f"'{reward.name}' asks a model, which an environment cannot; use a rule"
        names = Counter(function.name for function in self._functions)
        for name in sorted(name for name, count in names.items() if count > 1):
            yield "tools", f"two tools are called '{name}'"
        for function in self._functions:
            try:
                found = function.find(ast.FunctionDef, ast.AsyncFunctionDef)
            except UsageError as error:
                yield "tools", error.what
                continue
            if self.config.format == "tag" and len(parameters(found)) != 1:
                yield "tools", f"'{found.name}' has to take one text, or say 'format: json'"

    def digest(self) -> str:
        """Hashes of the prompts, of each function's file and of what the reward reads."""
        found = [self.data.digest(), *(function.digest() for function in self._functions)]
        found += [reward.digest() for reward in self.rewards.values()]
        return " ".join(map(str, found))

    def load(self) -> Iterator[Record]:
        """One task for each prompt."""
        config = self.config
        box = Toolbox(
            {function.name: function.load() for function in self._functions},
            config.format,
            config.max_result,
            config.timeout,
        )
        told = box.description() if config.describe else ""
        for record in islice(self.data.load(), self.data.config.limit):
            prompt = convert(record, Prompt)
            assert isinstance(prompt, Prompt)
            yield ToolTask(
                source=record.source,
                prompt=prompt,
                opening=_with_system(prompt.messages, told),
                box=box,
                reward=self.rewards["reward"],
                max_calls=config.max_calls,
            )


def _with_system(messages: tuple[Message, ...], told: str) -> tuple[Message, ...]:
    if not told:
        return messages
    if messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{told}"), *messages[1:])
    return (Message("system", told), *messages)


@dataclass
class Toolbox:
    """Functions that a model can call by what it writes."""

    functions: Mapping[str, Callable[..., Any]]
    format: str
    max_result: int
    timeout: float

    def calls(self, reply: str) -> list[tuple[str, str]]:
        """The calls in a reply: a tool's name and what it is given (of json: all of the call)."""
        if self.format == "json":
            return [("", text) for text in JSON_CALL.findall(reply)]
        names = "|".join(map(re.escape, self.functions))
        return re.findall(rf"<({names})>(.*?)</\1>", reply, re.DOTALL)

    def run(self, name: str, given: str) -> tuple[str, bool]:
        """What a call returns, as text, and whether it went wrong: then the text says how."""
        args: list[str] = [given]
        kwargs: dict[str, Any] = {}
        if self.format == "json":
            try:
                call = json.loads(given)
                name, args, kwargs = str(call["name"]), [], dict(call["arguments"])
            except (ValueError, KeyError, TypeError):
                return 'error: a call reads {"name": "...", "arguments": {...}}', True
        if name not in self.functions:
            return f"error: there is no '{name}'; there is {', '.join(self.functions)}", True
        try:
            result = in_thread(lambda: self._called(name, args, kwargs)).result(self.timeout)
        except TimeoutError:
            return f"error: '{name}' took longer than {self.timeout:g} s", True
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            return f"error: {'; '.join(faults)}"[: self.max_result], True
        except Exception as error:  # a tool is the user's, and may fail in any way
            return f"error: {error or type(error).__name__}"[: self.max_result], True
        return str(result)[: self.max_result], False

    def _called(self, name: str, args: list[str], kwargs: dict[str, Any]) -> Any:
        result = validate_call(self.functions[name])(*args, **kwargs)
        return asyncio.run(_settled(result)) if inspect.isawaitable(result) else result

    def description(self) -> str:
        """The tools for a system message; of json, in the words of Qwen's chat template."""
        if self.format == "tag":
            lines = [
                f"<{name}>...</{name}>: {inspect.getdoc(function) or name}"
                for name, function in self.functions.items()
            ]
            return "\n".join(["You can call these tools:", *lines])
        signatures = [
            {
                "name": name,
                "description": inspect.getdoc(function) or "",
                "parameters": TypeAdapter(cast(Any, function)).json_schema(),
            }
            for name, function in self.functions.items()
        ]
        lines = [json.dumps({"type": "function", "function": one}) for one in signatures]
        return QWEN.format(tools="\n".join(lines))


QWEN = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


async def _settled(result: Any) -> Any:
    return await result


@dataclass(frozen=True, kw_only=True)
class ToolTask(Task):
    """A prompt with tools."""

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"tool_errors": False}
    concurrent: ClassVar[bool] = True

    prompt: Prompt
    opening: tuple[Message, ...]
    box: Toolbox = field(repr=False)
    reward: Reward = field(repr=False)
    max_calls: int

    def start(self) -> Episode:
        """Begin it."""
        return ToolEpisode(self)


@dataclass
class ToolEpisode(Episode):
    """A prompt being answered."""

    task: ToolTask
    told: tuple[Message, ...] | None = None
    calls: int = 0
    errors: int = 0
    score: float | None = None

    def __post_init__(self) -> None:
        self.told = self.task.opening

    def turn(self) -> Turn | None:
        """The prompt at first, then what the tools returned."""
        return Turn(self.told) if self.told is not None else None

    def act(self, reply: str) -> Sequence[float | None]:
        """0 for a reply that calls tools; what the reward says for the answer, if anything."""
        task = self.task
        calls = task.box.calls(reply)
        if calls and self.calls + len(calls) <= task.max_calls:
            results = [task.box.run(name, given) for name, given in calls]
            self.calls += len(results)
            self.errors += sum(failed for _, failed in results)
            self.told = tuple(Message("tool", text) for text, _ in results)
            return [0.0]
        self.told = None
        prompt = task.prompt
        sample = Sample(
            prompt=prompt.messages,
            completion=reply,
            answer=prompt.answer,
            truncated=self.truncated,
            metadata=prompt.metadata,
        )
        [self.score] = scores_of(task.reward, [sample], self.time_limit)
        return [self.score]

    def metrics(self) -> Mapping[str, float]:
        """Calls, those of them that went wrong, and the reward of the answer."""
        found = {"tool_calls": float(self.calls), "tool_errors": float(self.errors)}
        return found if self.score is None else {**found, self.task.reward.label: self.score}

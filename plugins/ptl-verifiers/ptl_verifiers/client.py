"""The policy as a model client of verifiers: messages in; text, tool calls and their tokens out.

What an agent has written is not rendered again: a prompt that goes on from it begins with the very
tokens that the trace holds, so that an episode is one sequence as long as the chat template only
adds to a conversation. Where it rewrites earlier turns the trace forks, and has two branches.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.v1.clients import Client
from verifiers.v1.clients.train import serialize_completion
from verifiers.v1.dialects import ChatDialect, Dialect
from verifiers.v1.graph import PendingTurn
from verifiers.v1.types import (
    AssistantMessage,
    Response,
    SamplingConfig,
    TextContentPart,
    Tool,
    ToolCall,
    TurnTokens,
    Usage,
)
from verifiers.v1.types import Message as VerifiersMessage

from posttrain_recipes.plugin import Message, Policy
from ptl_verifiers.dataset import Format

CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
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
"""How Qwen's chat template tells of tools."""


@dataclass(frozen=True)
class Talk:
    """How conversations with tools are written as text."""

    format: Format = "json"
    describe: bool = True

    def told(self, messages: Sequence[VerifiersMessage], tools: Sequence[Tool]) -> list[Message]:
        """A conversation for the policy's chat template, tools told of in its system message."""
        said = [self._message(message, tools) for message in messages]
        about = self.about(tools) if tools and self.describe else ""
        if not about:
            return said
        if said and said[0].role == "system":
            return [Message("system", f"{said[0].content}\n\n{about}"), *said[1:]]
        return [Message("system", about), *said]

    def about(self, tools: Sequence[Tool]) -> str:
        """What a system message says of tools."""
        if self.format == "tag":
            lines = [f"<{tool.name}>...</{tool.name}>: {tool.description}" for tool in tools]
            return "\n".join(["You can call these tools:", *lines])
        functions = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in tools
        ]
        lines = [json.dumps({"type": "function", "function": one}) for one in functions]
        return QWEN.format(tools="\n".join(lines))

    def _message(self, message: VerifiersMessage, tools: Sequence[Tool]) -> Message:
        if not isinstance(message, AssistantMessage):
            return Message(message.role, _text(message.content))
        calls = [self._call(call, tools) for call in message.tool_calls or ()]
        return Message(
            "assistant", "\n".join([part for part in [message.content or "", *calls] if part])
        )

    def _call(self, call: ToolCall, tools: Sequence[Tool]) -> str:
        if self.format == "tag":
            try:
                [given] = json.loads(call.arguments).values()
            except (ValueError, AttributeError):
                given = call.arguments
            return f"<{call.name}>{given}</{call.name}>"
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
        said = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{said}\n</tool_call>"

    def read(self, text: str, tools: Sequence[Tool], number: int) -> AssistantMessage:
        """A reply: its text without the calls, and the calls. What is no call stays text.

        Args:
            number: of the reply in its episode, which the ids of the calls are told apart by.
        """
        calls: list[ToolCall] = []

        def take(match: re.Match[str]) -> str:
            read = self._read(match, tools)
            if read is None:
                return match.group()
            name, arguments = read
            calls.append(ToolCall(id=f"call_{number}_{len(calls)}", name=name, arguments=arguments))
            return ""

        if tools:
            names = "|".join(re.escape(tool.name) for tool in tools)
            tag = re.compile(rf"<({names})>(.*?)</\1>", re.DOTALL)
            text = (tag if self.format == "tag" else CALL).sub(take, text).strip()
        return AssistantMessage(content=text or None, tool_calls=calls or None)

    def _read(self, match: re.Match[str], tools: Sequence[Tool]) -> tuple[str, str] | None:
        if self.format == "tag":
            name, given = match.groups()
            tool = next(tool for tool in tools if tool.name == name)
            named = list(tool.parameters.get("properties", {}))
            return (name, json.dumps({named[0]: given})) if len(named) == 1 else None
        try:
            call = json.loads(match.group(1))
            return str(call["name"]), json.dumps(call["arguments"])
        except (ValueError, KeyError, TypeError):
            return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if all(isinstance(part, TextContentPart) for part in content or ()):
        return "\n".join(part.text for part in content or ())
    raise NotImplementedError("a message has a part that is no text; ptl reads text alone")


class PolicyClient(Client):
    """Has a policy of ptl answer the model calls of one episode."""

    def __init__(self, policy: Policy, talk: Talk) -> None:
        self.policy = policy
        self.talk = talk
        self.replies = 0
        self.cut = False
        """Whether a reply ended at the limit of tokens."""

    async def get_response(
        self,
        dialect: Dialect,
        body: dict[str, Any],
        sampling: SamplingConfig,
        session_id: str | None = None,
        turn: PendingTurn | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """A reply of the policy, with its tokens. Of `sampling` only `max_tokens` counts: what is
        trained is the policy as it is, at the temperature of the method."""
        if not isinstance(dialect, ChatDialect) or turn is None:
            raise NotImplementedError(
                f"the policy answers chat completions, not {type(dialect).__name__}: use a harness "
                "that asks for them"
            )
        renderer = self.policy.renderer
        prompt = self._prompt(turn)
        reply = await asyncio.wrap_future(self.policy.sample(prompt, sampling.max_tokens))
        tokens, self.replies = list(reply.tokens), self.replies + 1
        ended = bool(tokens) and tokens[-1] in renderer.stop
        self.cut = self.cut or not ended
        message = self.talk.read(renderer.parse(tokens), turn.tools, self.replies)
        response = Response(
            id=f"ptl-{self.replies}",
            created=0,
            model=str(body.get("model")),
            message=message,
            finish_reason="length" if not ended else "tool_calls" if message.tool_calls else "stop",
            usage=Usage(prompt_tokens=len(prompt), completion_tokens=len(tokens)),
            tokens=TurnTokens(
                prompt_ids=prompt, completion_ids=tokens, completion_logprobs=list(reply.logprobs)
            ),
        )
        response.raw = serialize_completion(response, response.model)
        return response

    def _prompt(self, turn: PendingTurn) -> list[int]:
        renderer, nodes = self.policy.renderer, [turn.trace.nodes[n] for n in turn.prefix_node_ids]
        told = self.talk.told(turn.prompt, turn.tools)
        whole = renderer.prompt(told)
        said = max((place for place, node in enumerate(nodes) if node.sampled), default=None)
        if said is None:
            return whole
        before = told[: len(told) - len(turn.prompt) + said + 1]
        try:
            through, _ = renderer.supervised(before)
        except Exception:  # a template that rewrites earlier turns
            return whole
        if whole[: len(through)] != through:
            return whole
        read = [token for node in nodes[: said + 1] for token in node.token_ids]
        ending = [] if read and read[-1] in renderer.stop else through[-1:]
        return [*read, *ending, *whole[len(through) :]]

"""A harness of verifiers that chats in this process: the loop of its `null` harness.

The harnesses of verifiers are programs, which `uv` fetches from the network as they first start.
This one needs none. As with theirs, model calls go through the episode's interception server.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
from ptl_verifiers.toolsets import LocalTools
from verifiers.v1.clients import ModelContext
from verifiers.v1.configs.harness import HarnessConfig
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harness import Harness
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
from verifiers.v1.runtimes import ProgramResult, Runtime
from verifiers.v1.task import TaskData
from verifiers.v1.trace import Trace

__all__ = ["ChatHarness"]


class ChatHarnessConfig(HarnessConfig):
    """Options of every harness."""


class ChatHarness(Harness[ChatHarnessConfig]):
    """Asks the model and runs the tools that it calls, up to the first reply that calls none."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    SUPPORTS_TOOL_INTERCEPTION = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: ModelContext,
        trace: Trace[Any, Any, Any],
        runtime: Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: TaskData,
        tool_interception_url: str | None = None,
    ) -> ProgramResult:
        """Chat until a reply calls no tool, or the rollout is stopped."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        elif prompt is not None:
            messages += [message_to_wire(message) for message in prompt]
        # Certificates take longer to read than a small model's reply.
        secure = endpoint.startswith("https:")
        headers = {"Authorization": f"Bearer {secret}"}
        async with (
            httpx.AsyncClient(
                headers=headers, timeout=None, trust_env=False, verify=secure
            ) as http,
            AsyncExitStack() as stack,
        ):
            tools = LocalTools(trace)
            stack.push_async_callback(tools.stop)
            await tools.start()
            servers = {
                name: {"url": url, "timeout": self.config.tool_timeout}
                for name, url in mcp_urls.items()
            }
            schemas, dispatch, connections = await connect_mcp(
                {"mcpServers": servers}, stack, {one["function"]["name"] for one in tools.schemas}
            )
            schemas = [*tools.schemas, *schemas]
            while True:
                body = {"model": ctx.model, "messages": messages}
                answer = await http.post(
                    f"{endpoint}/chat/completions",
                    json={**body, "tools": schemas} if schemas else body,
                )
                if answer.is_error:  # the session knows why: a stop, or an error that it tells of
                    return ProgramResult(1, "", answer.text)
                said = answer.json()["choices"][0]["message"]
                messages.append(said)
                if not said.get("tool_calls"):
                    return ProgramResult(0, "", "")
                for call in said["tool_calls"]:
                    name, given = call["function"]["name"], call["function"]["arguments"]
                    result = {"role": "tool", "tool_call_id": call["id"], "name": name}
                    if tool_interception_url:
                        gate = await http.post(
                            tool_interception_url,
                            json={
                                "tool_call_id": call["id"],
                                "name": name,
                                "arguments": _read(given),
                            },
                        )
                        decision = gate.json()
                        if gate.is_error or decision["action"] == "stop":
                            return ProgramResult(1, "", gate.text)
                        if decision["action"] == "deny":
                            messages.append(decision["message"])
                            continue
                    arguments = _read(given)
                    if not isinstance(arguments, dict):
                        content: Any = "error: tool arguments must be a JSON object"
                    elif name in tools or name in dispatch:
                        doing = (
                            tools.call(name, arguments)
                            if name in tools
                            else call_mcp(connections, dispatch, name, arguments)
                        )
                        try:
                            content = await asyncio.wait_for(doing, self.config.tool_timeout)
                        except TimeoutError:
                            content = f"error: '{name}' took too long"
                    else:
                        content = f"error: unknown tool {name!r}"
                    messages.append({**result, "content": content})


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments

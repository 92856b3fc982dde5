"""Tool servers in this process.

verifiers starts a process for each tool server of each episode, which takes seconds. Those that it
would start on this machine are called here as functions instead, with the state of their episode.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Sequence
from typing import Any

from mcp.server.mcpserver import MCPServer
from verifiers.v1.harnesses.utils.mcp import mcp_content_to_chat_content
from verifiers.v1.mcp import Toolset
from verifiers.v1.runtimes import SubprocessConfig
from verifiers.v1.trace import Trace

here: contextvars.ContextVar[tuple[str, Sequence[Toolset[Any, Any]]]] = contextvars.ContextVar(
    "ptl_verifiers_toolsets", default=("", ())
)
"""The key of the task that is played, and its toolsets that run in this process."""


def is_local(toolset: Toolset[Any, Any]) -> bool:
    """Whether verifiers would start it as a process of this machine."""
    config = toolset.config
    return not getattr(config, "url", None) and isinstance(config.runtime, SubprocessConfig)


def _server(name: str) -> MCPServer[Any]:
    """A server that lists and calls tools. Making one sets up the logging of the process, which is
    put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    server: MCPServer[Any] = MCPServer(name)
    root.handlers[:] = handlers
    root.setLevel(level)
    return server


class LocalTools:
    """The toolsets of one episode, for its trace."""

    def __init__(self, trace: Trace[Any, Any, Any]) -> None:
        key, toolsets = here.get()
        self._trace = trace
        self._toolsets = list(toolsets) if trace.task.key == key else []
        self._servers: dict[str, tuple[MCPServer[Any], str]] = {}
        self.schemas: list[dict[str, Any]] = []
        """The tools, as a chat completion is told of them."""

    async def start(self) -> None:
        """Set the toolsets up for the task."""
        for toolset in self._toolsets:
            self._share_state(toolset)
            await toolset.setup()
            await toolset.setup_task(self._trace.task.data)
            server = _server(toolset.server_name or type(toolset).__name__)
            toolset.register(server)
            for tool in await server.list_tools():
                prefix = f"{toolset.server_name}_" if toolset.server_name else ""
                name = f"{prefix}{tool.name}"
                if name in self._servers:
                    raise ValueError(f"two tools are called '{name}'; keep their names qualified")
                self._servers[name] = server, tool.name
                function = {
                    "name": name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                }
                self.schemas.append({"type": "function", "function": function})

    def _share_state(self, toolset: Toolset[Any, Any]) -> None:
        """Its state is the trace's: a copy for each call, which is put back where it changed."""
        from verifiers.v1.mcp import server as module

        async def pull() -> Any:
            return self._trace.state.model_copy(deep=True)

        async def push(before: bytes) -> None:
            state = module._call_state.get()
            if state is not None and toolset._state_adapter.dump_json(state) != before:
                self._trace.state = state

        toolset._pull_state = pull  # type: ignore[method-assign]
        toolset._push_state = push  # type: ignore[method-assign]

    def __contains__(self, name: object) -> bool:
        return name in self._servers

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """What a tool returns, as the content of a tool message; an error as its text."""
        server, raw = self._servers[name]
        try:
            result: Any = await server.call_tool(raw, arguments)
        except Exception as error:  # as its server would have answered
            return f"Error executing tool {raw}: {error}"
        return mcp_content_to_chat_content(result.content)

    async def stop(self) -> None:
        """Let go of what they hold."""
        for toolset in self._toolsets:
            await toolset._exit_stack.aclose()

"""Harnesses that people have, unmodified, on OpenAI's routes with tools and forms; each where it is
installed (inspect-ai, litellm, langchain-openai). `tests/e2e/test_lm_eval.py` has lm-eval."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import models
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from tests.e2e.test_structured_replies import ADD, SCHEMA, TOOLED, schema_of
from tests.unit.test_openai_tools import TEMPLATE

ASK = [{"role": "user", "content": "What is 12 + 7?"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    data, tooled = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("m") / "tooled"
    shutil.copytree(models.resolve("ptl/nano"), tooled)
    (tooled / "chat_template.jinja").write_text(TEMPLATE)
    with launch.start({TOOLED: str(tooled)}, data, data / "engine.log") as engine:
        yield engine


def fits(text: str | None) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(text or ""), SCHEMA)


def test_inspect_scores_an_agent_that_calls_a_tool(
    engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("inspect_ai")
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import Tool, tool

    @tool
    def add() -> Tool:
        async def execute(a: int) -> str:
            """Add seven.

            Args:
                a: A number.
            """
            heard.append(a)
            return str(a + 7)

        return execute

    heard: list[int] = []
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path))
    model = get_model(
        f"openai-api/ptl/{TOOLED}",
        base_url=f"{engine.base_url}/v1",
        api_key=engine.api_key,
        config=GenerateConfig(max_tokens=60, seed=1, temperature=1),
    )
    task = Task(
        dataset=[Sample("What is 12 + 7?", target="7"), Sample("What is 1 + 7?", target="8")],
        solver=[use_tools(add(), tool_choice="any"), generate(tool_calls="single")],
        scorer=includes(),
    )
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path))
    assert log.status == "success", log.error
    assert len(heard) == 2
    for sample in log.samples or []:
        roles = [message.role for message in sample.messages]
        assert roles == ["user", "assistant", "tool"]
        assert sample.messages[1].tool_calls[0].function == "add"  # type: ignore[union-attr, index]
        assert int(sample.messages[2].text) in {a + 7 for a in heard}
        assert sample.scores


def test_litellm_calls_tools_and_keeps_to_a_schema(engine: EngineProcess) -> None:
    litellm = pytest.importorskip("litellm")

    def ask(**more: Any) -> Any:
        return litellm.completion(
            model=f"openai/{TOOLED}", api_base=f"{engine.base_url}/v1", api_key=engine.api_key,
            messages=ASK, max_tokens=120, seed=2, **more,
        ).choices[0]  # fmt: skip

    fits(ask(response_format=schema_of(SCHEMA)).message.content)
    called = ask(tools=[ADD], tool_choice="required")
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a"}
    chunks = litellm.completion(
        model=f"openai/{TOOLED}", api_base=f"{engine.base_url}/v1", api_key=engine.api_key,
        messages=ASK, max_tokens=120, seed=2, stream=True, tools=[ADD], tool_choice="required",
    )  # fmt: skip
    rebuilt = litellm.stream_chunk_builder(list(chunks), messages=ASK)
    (again,) = rebuilt.choices[0].message.tool_calls
    assert again.function.arguments == call.function.arguments


def test_langchain_calls_tools_and_keeps_to_a_schema(engine: EngineProcess) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    from langchain_core.messages import ToolMessage
    from pydantic import BaseModel, Field

    class Sum(BaseModel):
        """A sum."""

        total: int = Field(ge=0, le=99)
        sure: bool

    model = chat_openai(
        model=TOOLED, base_url=f"{engine.base_url}/v1", api_key=engine.api_key, max_tokens=120,
        seed=4, temperature=1,
    )  # fmt: skip
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(Sum, method=method).invoke("What is 12 + 7?")
        assert isinstance(found, Sum), method
    bound = model.bind_tools([ADD], tool_choice="any")
    first = bound.invoke("What is 12 + 7?")
    (call,) = first.tool_calls
    assert call["name"] == "add"
    answer = model.bind_tools([ADD]).invoke(
        [("user", "What is 12 + 7?"), first, ToolMessage("19", tool_call_id=call["id"])]
    )
    assert isinstance(answer.content, str)
    assert answer.response_metadata["finish_reason"] in ("stop", "length", "tool_calls")

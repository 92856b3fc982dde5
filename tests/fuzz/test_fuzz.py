"""Nonsense and near-sense for recipes, rows, the wire and rewards: words, no traceback, no hang.

What was once found at fault lies in `corpus/` and is tried by every run. `.ci/nightly` tries many
more (`pytest -m nightly tests/fuzz`), other ones each night.
"""

from __future__ import annotations

import io
import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes import registry
from posttrain_recipes.datasets.checking import check_file
from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import planner, reuse
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.plugin import Message, Sample
from posttrain_recipes.progress.lines import Lines
from posttrain_recipes.reporting import comparisons, report
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.running import collect, preflight
from posttrain_recipes.shown import plain
from posttrain_recipes.store import Store
from posttrain_recipes.training.rl.scoring import WrongScores, scores_of
from tests.conftest import ROOT, Project
from tests.live_engine import Live, message, started

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 60
"""What takes longer hangs."""
MANY = [pytest.param(4000, marks=pytest.mark.nightly, id="many")]


@contextmanager
def within(seconds: int = SECONDS) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(strategy: st.SearchStrategy[Any], count: int, check: Callable[[Any], None]) -> None:
    """Check `count` examples: the same ones in every run, and other ones each night."""

    @settings(
        max_examples=count,
        derandomize=count < 1000,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: Any) -> None:
        with within():
            check(example)

    each()


def kept(kind: str) -> list[Path]:
    return sorted((CORPUS / kind).iterdir())


texts = st.sampled_from(
    ["", "a", "chat.jsonl", "./model", "base", "sft", "a\0b", "\ud800", "x" * 300, "../..",
     "~nobody/x", "${env:HOME}", "${env:", "tinker://a/weights/b", "\x1b[31m", "1e400", ">= 0.5",
     "/dev/null", "."]
)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([10**30, -(10**30), 0.5, 1e308, math.nan, math.inf, -math.inf, -0.0])
    | texts
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

# --- recipes -------------------------------------------------------------------------------------

SCHEMA = json.loads((ROOT / "schemas/recipe.schema.json").read_text(encoding="utf-8"))


@st.composite
def of_schema(draw: st.DrawFn, schema: Any, depth: int = 0) -> Any:
    """A value of a schema, most of the time; now and then anything."""
    if not isinstance(schema, dict) or draw(st.integers(0, 60)) == 0:
        return draw(anything)
    while "$ref" in schema:
        found: Any = SCHEMA
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return draw(of_schema(draw(st.sampled_from(schema[word])), depth))
    if "if" in schema and "then" in schema:
        return draw(of_schema(schema["then" if draw(st.booleans()) else "else"], depth))
    if "allOf" in schema and any("then" in one for one in schema["allOf"]):
        return draw(of_schema(draw(st.sampled_from(schema["allOf"]))["then"], depth))
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return draw(of_object(schema, depth))
    if kind == "array" or "items" in schema:
        count = draw(st.integers(schema.get("minItems", 0), 2)) if depth < 6 else 0
        return [draw(of_schema(schema.get("items", {}), depth + 1)) for _ in range(count)]
    if kind in ("integer", "number"):
        return draw(st.sampled_from([0, 1, 2, 3, 0.5, 1e-4, schema.get("default", 1)]))
    if kind == "boolean":
        return draw(st.booleans())
    if "examples" in schema:
        return draw(st.sampled_from(schema["examples"]))
    return draw(st.sampled_from(["a", "b", "sft", "base", "chat.jsonl", "./model"]) | texts)


@st.composite
def of_object(draw: st.DrawFn, schema: Any, depth: int) -> dict[str, Any]:
    known = schema.get("properties", {})
    required = [*schema.get("required", ()), *(["use"] if "use" in known else [])]
    chosen = dict.fromkeys(required)
    if depth < 6 and known:
        chosen |= dict.fromkeys(draw(st.lists(st.sampled_from(sorted(known)), max_size=4)))
    made = {name: draw(of_schema(known.get(name, {}), depth + 1)) for name in chosen}
    if draw(st.integers(0, 30)) == 0:
        made[draw(texts)] = draw(anything)
    return made


def as_yaml(value: Any) -> str:
    """JSON, which is YAML but for numbers that are none, as a file may hold it."""
    text = json.dumps(value)
    return text.replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")


def check_recipe(project: Project, text: str) -> None:
    """A recipe is refused in words, or does what can be done without an engine."""
    (project.path / "mine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read = recipes.load(Path("mine.yaml"))
        planned = planner.build(read, registry.load())
    except PtlError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert len(refused) > 10
        plain(refused).encode()
        return
    # What is kept of it is it: 'ptl reproduce' makes the same of that.
    again = project.load(report.resolved_yaml(planned.resolved), name="again.yaml")
    other = planner.build(again, registry.load())
    assert [s.fingerprint for s in other.stages] == [s.fingerprint for s in planned.stages]
    json.dumps(planned.resolved).encode()
    for finding in (*preflight.cheap(planned, project.path / ".ptl"), *preflight.data(planned)):
        assert finding.verdict in ("ok", "warning", "failed")


@pytest.mark.parametrize("count", [120, *MANY])
def test_recipes(project: Project, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tried(of_schema(SCHEMA), count, lambda made: check_recipe(project, as_yaml(made)))


@pytest.mark.parametrize("file", kept("recipes"), ids=lambda file: file.name)
def test_recipes_once_at_fault(project: Project, file: Path) -> None:
    with within():
        check_recipe(project, file.read_bytes().decode("utf-8", "surrogatepass"))


# --- rows ----------------------------------------------------------------------------------------

FIELDS = ("messages", "prompt", "completion", "chosen", "rejected", "question", "answer", "text",
          "label", "role", "content", "tool_calls", "conversations", "from", "value")  # fmt: skip
rows = st.recursive(
    scalars | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
whole = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": rows}
            ),
            max_size=3,
        )
    }
)
files = st.tuples(
    st.sampled_from(["jsonl", "json", "csv", "tsv"]),
    st.lists(
        (rows | whole).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40),
        max_size=4,
    ),
)


def check_rows(project: Project, suffix: str, content: bytes) -> None:
    path = project.path / f"fuzz.{suffix}"
    path.write_bytes(content)
    found = check_file(path)
    told = json.dumps(found.as_dict())
    assert found.ok or found.fault_count
    plain("".join(f"{fault.location} {fault.message}" for fault in found.faults)).encode()
    assert told
    # What is called sound is read; what is not is refused in words.
    text = (
        "name: a\nmodel: ./model\nstages: [{name: a, method: {use: sft}, "
        f"dataset: {{use: jsonl, path: {path.name}}}}}]\n"
    )
    check_recipe(project, text)


@pytest.mark.parametrize("count", [150, *MANY])
def test_rows(project: Project, count: int) -> None:
    tried(files, count, lambda made: check_rows(project, made[0], b"\n".join(made[1])))


@pytest.mark.parametrize("file", kept("rows"), ids=lambda file: file.name)
def test_rows_once_at_fault(project: Project, file: Path) -> None:
    with within():
        check_rows(project, file.suffix[1:], file.read_bytes())


# --- the wire ------------------------------------------------------------------------------------

ROUTES = ("create_session", "create_model", "forward_backward", "optim_step", "save_weights",
          "load_weights", "create_sampling_session", "asample", "retrieve_future",
          "retrieve_futures", "weights_info", "create_custom_loss", "sessions/search")  # fmt: skip
WORDS = ("session_id", "model_id", "seq_id", "model_seq_id", "base_model", "lora_config", "path",
         "prompt", "sampling_params", "num_samples", "adam_params", "request_id")  # fmt: skip
bodies = st.tuples(
    st.sampled_from(ROUTES),
    st.dictionaries(st.sampled_from(WORDS), anything, max_size=5).map(
        lambda body: json.dumps(body).encode()
    )
    | st.binary(max_size=200),
)  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with started(tmp_path_factory.mktemp("engine")) as live:
        yield live


def check_wire(live: Live, route: str, body: bytes) -> None:
    answer = live.post(route, body)
    assert answer.status_code < 500, answer.text
    answer.json()


@pytest.mark.parametrize("count", [150, *MANY])
def test_wire(live: Live, count: int) -> None:
    tried(bodies, count, lambda made: check_wire(live, *made))
    live.goes_on()


@pytest.mark.parametrize("count", [60, *MANY])
def test_messages_of_protobuf(live: Live, count: int) -> None:
    model = live.model()
    changes = st.lists(
        st.tuples(st.integers(0, 5000), st.sampled_from("dis"), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=5,
    )

    def check(made: Any) -> None:
        body = bytearray(message(model, 9_000_000).SerializeToString())
        for at, how, noise in made:
            place = at % max(len(body), 1)
            end = place if how == "i" else place + len(noise)
            body[place:end] = b"" if how == "d" else noise
        check_wire(live, "forward_backward", bytes(body))

    tried(changes, count, check)
    live.goes_on()


@pytest.mark.parametrize("file", kept("wire"), ids=lambda file: file.name)
def test_wire_once_at_fault(live: Live, file: Path) -> None:
    """The route, with `+` for a slash, is what its name begins with."""
    with within():
        check_wire(live, file.name.split(".")[0].replace("+", "/"), file.read_bytes())
    live.goes_on()
    assert pb


# --- rewards -------------------------------------------------------------------------------------

outputs = st.one_of(
    anything,
    st.sampled_from(
        [np.float32(1), np.float64("nan"), np.array([1.0, 2.0]), np.array([[1.0], [2.0]]),
         np.array(["a", "b"]), np.array([None, 1.0]), [1, 2], (0.5, None), {0.1, 0.2}, [10**400, 1],
         [True, False], iter([1, 2]), range(2), object(), b"ab", "12", [np.float16(1), np.int8(2)],
         [1j, 2], [complex("nan"), 1], np.datetime64("NaT"), [np.array(1.0), np.array(2.0)]]
    ),
    st.sampled_from([ValueError("x\x1b"), KeyError(), SystemExit(3), StopIteration(), MemoryError(),
                     RecursionError(), OverflowError(), TimeoutError("t"), AssertionError()]),
)  # fmt: skip


class Odd:
    """A reward that returns, or raises, what it is told to."""

    label = "odd"

    def __init__(self, output: Any) -> None:
        import threading

        self.output, self.lock = output, threading.Lock()

    def score(self, samples: Any) -> Any:
        if isinstance(self.output, BaseException):
            raise self.output
        return self.output


def check_reward(output: Any) -> None:
    two = [Sample((Message("user", "a"),), reply, "b") for reply in ("x", "y")]
    try:
        found = scores_of(Odd(output), two)  # type: ignore[arg-type]
    except (WrongScores, ValueError) as error:
        told = str(error)
    except Exception:
        # Its own; else there are words for whatever is not one number for each reply.
        if not isinstance(output, BaseException):
            raise
        return
    else:
        told = ""
    if told:
        assert len(told) > 10 or isinstance(output, ValueError)
        return
    assert len(found) == 2
    assert all(score is None or math.isfinite(score) for score in found)
    json.dumps(found)


@pytest.mark.parametrize("count", [150, *MANY])
def test_rewards(count: int) -> None:
    tried(outputs, count, check_reward)


@pytest.mark.parametrize("file", kept("rewards"), ids=lambda file: file.name)
def test_rewards_once_at_fault(file: Path) -> None:
    """A Python expression each, in which `np` is numpy."""
    with within():
        check_reward(eval(file.read_text(), {"np": np, "math": math}))


# --- what is kept of a run -----------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in plain data, as the keys that lead to it."""
    yield at
    inner = dict(enumerate(value)) if isinstance(value, list) else value
    for key, one in inner.items() if isinstance(inner, dict) else ():
        yield from places(one, (*at, key))


RUN_RECIPE = """\
name: during
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: nll}]
"""
WHOLE = json.loads((CORPUS / "runs/whole.json").read_text(encoding="utf-8"))
PLACES = sorted(places(WHOLE), key=repr)


@st.composite
def damaged_run(draw: st.DrawFn) -> Any:
    """A run with something else in one to three of its places, or nothing there."""
    run = json.loads(json.dumps(WHOLE))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(PLACES[1:]))
        holder = run
        try:
            for key in at[:-1]:
                holder = holder[key]
            if draw(st.integers(0, 4)) == 0:
                del holder[at[-1]]
            else:
                holder[at[-1]] = draw(anything)
        except (LookupError, TypeError):
            continue  # it is in what was damaged before
    return run


@pytest.mark.parametrize("count", [150, *MANY])
def test_a_damaged_record_is_unreadable_or_shown(project: Project, count: int) -> None:
    plan = project.plan(RUN_RECIPE)

    def check(run: Any) -> None:
        folder = project.path / "home/runs/during-1"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run)
        (folder / "run.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        kept = Store(project.path / "home")
        runs, broken = kept.listed()
        assert len(runs) + len(broken) == 1
        for one in broken:
            assert one.why
            assert one.hint
        for record in runs:
            json.loads(
                json.dumps(report.as_json(record), default=str),
                parse_constant=lambda name: pytest.fail(name),
            )
            report.markdown(record)
            Pages(kept.home, record).html()
            comparisons.groups(record)
            Lines(io.StringIO()).table(record)
            collect.find(runs, {}, set())
        list(reuse.decisions(plan, Scope(), runs, kept.home))
        reuse.remade(plan, runs)

    tried(damaged_run(), count, check)

"""`ptl data show`: what is shown of a record is what is trained on, and what is added is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes import models, registry, shipped, store
from posttrain_recipes.cli import data_show
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.methods.kto import KTO
from posttrain_recipes.methods.prompt_distill import PromptDistill
from posttrain_recipes.methods.sdft import SDFT
from posttrain_recipes.methods.sft import SFT, Likelihood
from posttrain_recipes.methods.teacher_samples import TeacherSamples
from posttrain_recipes.planning import planner
from posttrain_recipes.plugin import (
    Conversation,
    Labelled,
    Message,
    Method,
    Preference,
    Prompt,
    Record,
)
from posttrain_recipes.records import Episode, Task, Turn
from posttrain_recipes.running import rendered
from posttrain_recipes.running.rendered import SHOWN, Looker, SeenRecord, View, of_one, page
from posttrain_recipes.training.loops import supervised
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from tests.conftest import Project, Ptl

SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> ChatRenderer:
    return load_renderer(models.resolve("ptl/tiny"))


def templated(template: str, eos: str = "<|im_end|>") -> ChatRenderer:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.resolve("ptl/tiny"))
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    return ChatRenderer(tokenizer)


def talk(*turns: str) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)  # type: ignore[arg-type]


def sft(**options: Any) -> SFT:
    return SFT(SFT.Config(**options))


def seen(method: Any, record: Record, renderer: ChatRenderer) -> tuple[View, ...]:
    shown = of_one(method, record, lambda ref: renderer)
    assert not shown.note, shown.note
    return shown.views


def added(view: View) -> list[tuple[str, str]]:
    return [(one.text, one.remark) for one in view.added]


# --- the same as training ------------------------------------------------------------------------


@dataclass
class Stage:
    """What a method needs of a stage up to where it would ask an engine."""

    train: Sequence[Record]
    renderer: ChatRenderer
    seed: int = 0
    start: Any = None
    rewards: Any = ()
    name: str = "s"
    resume: Any = None
    wait: Any = None

    def sampling_client(self, checkpoint: Any) -> Any:
        return None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`trained(method, records, renderer)`: what the loop is given to train on."""

    def trained(method: Method, records: Sequence[Record], renderer: ChatRenderer) -> list[Any]:
        given: list[Any] = []
        monkeypatch.setattr(supervised, "train", lambda *arguments: given.extend(arguments))
        method.train(Stage(records, renderer))  # type: ignore[arg-type]
        return list(given[2])

    return trained


CHAT = Conversation(messages=talk("s be kind", "u 1+1?", "a 2", "u 2+2?", "a four of them"))
LONG = Conversation(messages=talk("u say it", "a " + "word " * 40))


@pytest.mark.parametrize(
    "options", [{}, {"train_on": "all"}, {"max_length": 20, "truncate": True}], ids=str
)
def test_what_is_shown_of_sft_is_what_it_sends(
    options: dict[str, Any], tiny: ChatRenderer, trained: Callable[..., list[Any]]
) -> None:
    method = sft(**options)
    record = LONG if "truncate" in options else CHAT
    (view,) = seen(method, record, tiny)
    sent: list[Any] = []
    client: Any = SimpleNamespace(forward_backward=lambda data, loss: sent.extend(data))
    Likelihood().submit(client, trained(method, [record], tiny))
    (datum,) = sent
    targets = list(datum.loss_fn_inputs["target_tokens"].data)
    assert [*datum.model_input.to_ints(), targets[-1]] == list(view.ids)
    assert targets == list(view.ids[1:])
    sent_weights = [weight > 0 for weight in datum.loss_fn_inputs["weights"].data]
    assert sent_weights == [weight > 0 for weight in view.weights[1:]]
    assert view.learned == sum(sent_weights)
    assert "".join(piece.text for piece in view.pieces) == tiny.decode(view.ids)
    learned = [piece.text for piece in view.pieces if piece.learned]
    assert "".join(learned) == tiny.decode(
        [t for t, weight in zip(view.ids, view.weights, strict=True) if weight]
    )
    assert any("cut off, at max_length=20" in note for note in view.notes) == (record is LONG)


def test_both_sides_of_a_pair_and_labelled_replies(
    tiny: ChatRenderer, trained: Callable[..., list[Any]]
) -> None:
    ask = talk("u hi")
    pair = Preference(prompt=ask, chosen=talk("a hello"), rejected=talk("a what", "u ?", "a so"))
    chosen, rejected = seen(DPO(DPO.Config()), pair, tiny)
    (replies,) = trained(DPO(DPO.Config()), [pair], tiny)
    for view, example in zip((chosen, rejected), replies.examples, strict=True):
        assert (view.ids, view.weights) == (tuple(example.tokens), tuple(example.weights))
    assert (chosen.what, rejected.what) == ("chosen", "rejected")
    good = Labelled(prompt=ask, completion=talk("a hello"), label=True)
    bad = Labelled(prompt=talk("u bye"), completion=talk("a no"), label=False)
    items = trained(KTO(KTO.Config()), [good, bad], tiny)
    for record, item, what in zip((good, bad), items, ("good", "bad"), strict=True):
        (view,) = seen(KTO(KTO.Config()), record, tiny)
        assert view.ids == tuple(item.examples[0].tokens)
        assert view.what == f"a {what} reply"


def test_prompts_are_those_that_the_student_and_the_teacher_read(
    tiny: ChatRenderer, trained: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(messages=talk("u 1+1?"), answer="2")
    distill = PromptDistill(PromptDistill.Config(system="Say one word."))
    (item,) = trained(distill, [prompt], tiny)
    student, teacher = seen(distill, prompt, tiny)
    assert (list(student.ids), list(teacher.ids)) == (item.prompt, item.instructed)
    sdft = SDFT(SDFT.Config())
    (item,) = trained(sdft, [CHAT], tiny)
    student, teacher = seen(sdft, CHAT, tiny)
    assert (list(student.ids), list(teacher.ids)) == (item.prompt, item.shown)
    asked: list[Any] = []
    monkeypatch.setattr(datagen, "sample", lambda sampler, tokens, *a, **k: asked.append(tokens))
    monkeypatch.setattr(datagen, "written", lambda *a: [[]])
    samples = TeacherSamples(TeacherSamples.Config(system="Say one word."))
    sink = SimpleNamespace(begin=lambda n: None, log=lambda *a: None)
    stage: Any = Stage([prompt], tiny)
    stage.sink, stage.resolve, stage.cache = sink, None, None
    with pytest.raises(ZeroDivisionError):  # nothing was written
        next(iter(samples.make(stage, 0)))
    (view,) = seen(samples, prompt, tiny)
    assert [list(view.ids)] == asked
    assert view.learned == 0
    assert view.ends == ("<|im_end|>",)


# --- what is added -------------------------------------------------------------------------------


def test_a_system_prompt_that_the_template_adds_is_told() -> None:
    renderer = templated(SYSTEM + CHATML)
    record = Conversation(messages=talk("u 1+1?", "a 2"))
    (view,) = seen(sft(), record, renderer)
    head = "<|im_start|>system\nYou are Tiny.<|im_end|>\n<|im_start|>user\n"
    assert added(view)[0] == (head, "a system prompt that is not in the data")
    (view,) = seen(sft(), CHAT, renderer)
    assert not any("not in the data" in remark for _, remark in added(view))
    mine = templated(CHATML.replace("{{ m.role }}\n", "{{ m.role }}\n{{ 'Today: 3 May. ' }}", 1))
    (view,) = seen(sft(), CHAT, mine)
    assert added(view)[0] == ("<|im_start|>system\nToday: 3 May. ", "words not in the data")


def test_the_generation_prompt_and_the_end_are_told(tiny: ChatRenderer) -> None:
    (view,) = seen(sft(), Conversation(messages=talk("u 1+1?", "a 2")), tiny)
    header = ("<|im_end|>\n<|im_start|>assistant\n", "it ends in the generation prompt")
    assert added(view)[1:] == [header, ("<|im_end|>", "ends the reply, and is learned")]
    (view,) = seen(sft(), Prompt(messages=talk("u 1+1?")), tiny)
    assert added(view)[-1] == ("<|im_start|>assistant\n", "the generation prompt")
    assert view.added[-1].where == rendered.BEGIN
    endless = templated("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    (view,) = seen(sft(), Conversation(messages=talk("u 1+1?", "a 2")), endless)
    assert added(view)[-1] == ("<|im_end|>", "ends the reply, and is learned")


@pytest.mark.parametrize("content", ["user", "assistant", "<|im_end|>", "a\nb", "You are Tiny."])
def test_words_of_the_data_are_not_taken_for_the_templates(content: str) -> None:
    renderer = templated(SYSTEM + CHATML)
    record = Conversation(messages=talk(f"u {content}", "a 2"))
    (view,) = seen(sft(), record, renderer)
    head, middle, end = (one.text for one in view.added)
    assert head + content + middle + "2" + end == renderer.decode(view.ids)
    text = any("is text where the data have it" in note for note in view.notes)
    assert text == (content == "<|im_end|>")


def test_a_template_that_looks_into_what_is_said_is_told() -> None:
    picky = "{% if '1' not in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML
    (view,) = seen(sft(), Conversation(messages=talk("u 1+1?", "a 2")), templated(picky))
    assert view.added == ()
    assert view.notes == ("what the chat template adds cannot be told apart: no",)


# --- long, broken, foreign -----------------------------------------------------------------------


def test_a_long_one_is_shortened_in_its_middle(tiny: ChatRenderer) -> None:
    record = Conversation(messages=talk("u " + "ask " * 500, "a " + "word " * 500))
    (view,) = seen(sft(max_length=9000), record, tiny)
    (gap,) = (piece for piece in view.pieces if piece.left_out)
    count = len(view.ids)
    assert count > 3 * SHOWN / 2
    assert sum(piece.tokens for piece in view.pieces if not piece.left_out) == SHOWN
    out = sum(weight > 0 for weight in view.weights[SHOWN // 2 : count - SHOWN // 2])
    assert gap.text == f" [... {count - SHOWN:,} tokens left out, {out:,} of them learned ...] "
    head, tail = view.ids[: SHOWN // 2], view.ids[count - SHOWN // 2 :]
    at = view.pieces.index(gap)
    assert "".join(piece.text for piece in view.pieces[:at]) == tiny.decode(head)
    assert "".join(piece.text for piece in view.pieces[at + 1 :]) == tiny.decode(tail)


def test_a_record_that_cannot_be_used_says_why(tiny: ChatRenderer) -> None:
    shown = of_one(sft(max_length=5), CHAT, lambda ref: tiny)
    assert not shown.views
    assert "are more than max_length=5" in shown.note


def test_a_plugin_that_raises_is_told(tiny: ChatRenderer) -> None:
    class Odd(SFT):
        def rendered(self, record: Record, renderers: Any) -> Any:
            raise KeyError("x")

    shown = of_one(Odd(SFT.Config()), CHAT, lambda ref: tiny)
    assert shown.note == "cannot be shown: KeyError: 'x'"


@dataclass(frozen=True, kw_only=True)
class Riddle(Task):
    broken: bool = False

    def start(self) -> Episode:
        if self.broken:
            raise OSError("no dice")
        return Asks()


class Asks(Episode):
    def turn(self) -> Turn | None:
        return Turn(talk("u what am I?"))

    def act(self, reply: str) -> Sequence[float | None]:
        return [0.0]


def test_of_a_task_its_first_turn_is_shown(tiny: ChatRenderer) -> None:
    shown = of_one(sft(), Riddle(source="riddles:0"), lambda ref: tiny, play=True)
    (view,) = shown.views
    assert list(view.ids) == tiny.prompt(talk("u what am I?"))
    assert "depends on what the model writes" in shown.note
    broken = of_one(sft(), Riddle(broken=True), lambda ref: tiny, play=True)
    assert broken == SeenRecord(
        "Riddle", note="the environment cannot begin an episode: OSError: no dice"
    )
    # A run that keeps a page begins no episode for it.
    unplayed = of_one(sft(), Riddle(broken=True), lambda ref: tiny)
    assert "'ptl data show' begins one" in unplayed.note


def test_the_page_of_a_run_marks_what_is_learned_and_runs_nothing(tiny: ChatRenderer) -> None:
    record = Conversation(messages=talk("u <script>\x1b[2J", "a <b>2</b>"), source="x.jsonl:1")
    text = page(sft(), record, lambda ref: tiny)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;\\u001b[2J" in text
    assert "<mark>&lt;b&gt;2&lt;/b&gt;</mark><mark><b>&lt;|im_end|&gt;</b></mark>" in text


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ((None, None), ""),
        ((1.0, 1.0), ""),
        ((0.25, None), "2 with weight 1, 2 with weight 0.25"),
        ((0.5, 0.5), "4 with weight 0.5"),
        ((0.0, 2.0), "2 with weight 2"),
        ((0.1, 0.2, 0.3, 0.4), "weights from 0.1 to 0.4"),
    ],
)
def test_what_learned_tokens_weigh_is_told_where_it_is_not_one(
    weights: tuple[float | None, ...], told: str, tiny: ChatRenderer
) -> None:
    messages = [
        message
        for weight in weights
        for message in (Message("user", "1 + 1 ="), Message("assistant", "2", weight=weight))
    ]
    record = Conversation(messages=tuple(messages), source="x.jsonl:1")
    (view,) = seen(sft(train_on="all"), record, tiny)
    assert view.weighs == told
    assert (
        f"learned (marked) ({told})" in page(sft(train_on="all"), record, lambda ref: tiny)
    ) == (told != "")


# --- the command ---------------------------------------------------------------------------------

RECIPE = """
name: mine
model: ptl/tiny
stages:
  - name: sft
    method: {use: sft}
    dataset: {use: jsonl, path: chat.jsonl}
"""
MADE = """
name: mine
model: ptl/tiny
stages:
  - name: ask
    method: {use: teacher_samples}
    dataset: {use: jsonl, path: questions.jsonl}
  - name: sft
    method: {use: sft}
    dataset: {use: collected, stage: ask}
"""


def test_learned_tokens_are_marked_where_there_is_no_colour(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE)
    said = ptl("data", "show", "mine.yaml", "-n", "2")
    assert (said.code, said.err) == (0, "")
    assert "learned tokens stand in ⟦ ⟧" in said.out
    assert "   | ⟦2<|im_end|>⟧\n" in said.out
    assert "1. chat.jsonl:1\n" in said.out
    assert "\n2. chat.jsonl:2\n" in said.out
    assert "\n3." not in said.out
    assert "20 tokens" not in said.out
    assert "tokens, 2 of them learned" in said.out
    assert "\x1b" not in said.out


def test_weights_of_messages_are_told(project: Project, ptl: Ptl) -> None:
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "weight": 0.5}]
    project.write("weighed.jsonl", json.dumps({"messages": turns}) + "\n")
    project.write("mine.yaml", RECIPE.replace("chat", "weighed"))
    assert "2 of them learned (2 with weight 0.5)\n" in ptl("data", "show", "mine.yaml").out


def test_variants_go_by_the_name_of_their_stage(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE + "matrix: {seed: [1, 2]}\n")
    said = ptl("data", "show", "mine.yaml", "--stage", "sft", "-n", "1")
    assert (said.code, said.err) == (0, "")
    assert "sft@seed=1 (sft): " in said.out
    assert "sft@seed=2" in said.out


def test_colour_is_for_terminals_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("mine.yaml", RECIPE)
    show = [str(project.path / "mine.yaml"), "-n", "1"]
    monkeypatch.setattr(data_show, "_coloured", lambda: True)
    said = CliRunner().invoke(data_show.show, show, color=True)
    assert said.exit_code == 0, said.output
    assert "\x1b[32m\x1b[1m2\x1b[0m" in said.output
    assert "⟦" not in said.output
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patched:
            patched.setenv("TERM", "xterm")
            patched.delenv("NO_COLOR", raising=False)
            assert data_show._coloured()
            patched.setenv(name, value)
            assert not data_show._coloured()


def test_marks_that_stand_in_the_data_are_not_taken(project: Project, ptl: Ptl) -> None:
    row = {"messages": [{"role": "user", "content": "⟦"}, {"role": "assistant", "content": "]]"}]}
    project.write("chat.jsonl", json.dumps(row) + "\n")
    project.write("mine.yaml", RECIPE)
    assert "learned tokens stand in ⟪ ⟫" in ptl("data", "show", "mine.yaml").out


def test_text_that_moves_the_cursor_is_shown_as_what_it_is(project: Project, ptl: Ptl) -> None:
    row = {"prompt": "a\x1b[2Jb\r", "completion": "\u202ec"}
    project.write("chat.jsonl", json.dumps(row) + "\n")
    project.write("mine.yaml", RECIPE)
    said = ptl("data", "show", "mine.yaml")
    assert said.code == 0
    assert not any(mark in said.out for mark in ("\x1b", "\u202e", "\r"))
    assert "\\u001b[2Jb\\u000d" in said.out


def test_records_that_a_stage_makes_are_shown_from_its_run(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", MADE)
    said = ptl("data", "show", "mine.yaml", "--stage", "sft")
    assert (said.code, said.err) == (0, "")
    assert "stage 'ask' makes these records, and no run of it is kept" in said.out
    plan = planner.build(recipes.load(Path("mine.yaml")), registry.load())
    kept = store.Store(store.default_home(None))
    record = _run(plan)
    made = kept.runs_dir / "mine-1" / "made" / "ask"
    made.mkdir(parents=True)
    (made / "conversation.jsonl").write_text('{"prompt": "hi", "completion": "made"}\n')
    with kept.open(record) as directory:
        directory.save()
    said = ptl("data", "show", "mine.yaml", "--stage", "sft")
    assert (said.code, said.err) == (0, "")
    assert "⟦made<|im_end|>⟧" in said.out


def _run(plan: Any) -> store.RunRecord:
    from posttrain_recipes.running.runner import new_record

    record = new_record(plan, "mine-1")
    asked = record.stage("ask")
    asked.status, asked.made_in, asked.made = "finished", "mine-1/made/ask", {"conversation": 1}
    asked.checkpoint = store.Checkpoint("ptl/tiny")
    return record


def test_a_stage_that_is_not_there_is_refused(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE)
    said = ptl("data", "show", "mine.yaml", "--stage", "sfd")
    assert said.code == 2
    assert "unknown stage 'sfd'; did you mean 'sft'?" in said.err


def test_json_has_every_token(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE)
    said = ptl("data", "show", "mine.yaml", "-n", "1", "--json")
    ((stage,),) = [json.loads(said.out)["stages"]]
    (view,) = stage["records"][0]["views"]
    assert (view["tokens"], view["learned"]) == (len(view["ids"]), 2)
    assert [weight for weight in view["weights"] if weight] == [1.0, 1.0]
    assert stage["count"] == 4


def test_the_rows_that_an_eval_holds_out_are_shown_with_their_lines(
    project: Project, ptl: Ptl
) -> None:
    held = RECIPE.replace("chat.jsonl}", "chat.jsonl, test_size: 1}\n    eval: [{use: nll}]")
    project.write("mine.yaml", held)
    shown = json.loads(ptl("data", "show", "mine.yaml", "--evals", "--json").out)["stages"]
    assert [(one["use"], one["count"]) for one in shown] == [("sft", 3), ("eval nll", 1)]
    train, test = ({record["source"] for record in one["records"]} for one in shown)
    assert all(source.startswith("chat.jsonl:") for source in train | test)
    assert len(train) == 3
    assert len(test) == 1
    assert not train & test


def test_every_shipped_recipe_can_be_shown_without_an_engine() -> None:
    loaded: dict[tuple[str, str], ChatRenderer] = {}
    for path in shipped.recipes().values():
        plan = planner.build(recipes.load(path, preset="tiny"), registry.load())
        looker = Looker(plan, _loaded=loaded)
        for stage in plan.stages:
            shown = looker.stage(stage, 1)
            assert shown, (path.name, stage.name)
            for one in shown:
                assert one.note or one.records, (path.name, stage.name)
                for record in one.records:
                    assert record.views, (path.name, record.note)
                    assert all(view.added for view in record.views)

"""Records of an eval that training data hold in other bytes: what counts, and what does not."""

from __future__ import annotations

import json

from posttrain_recipes.datasets.contamination import find, words
from posttrain_recipes.plugin import Conversation, Message, Preference, Prompt
from tests.conftest import Project, Ptl

LONG = "the old lighthouse keeper climbed one hundred and seven steps every night to light its lamp"


def asks(text: str, reply: str = "", source: str = "t:1") -> Conversation:
    messages = (Message("user", text), Message("assistant", reply))
    return Conversation(messages=messages, source=source)


def prompt(text: str, answer: str | None = None, source: str = "e:1") -> Prompt:
    return Prompt(messages=(Message("user", text),), answer=answer, source=source)


def test_a_question_is_the_same_whatever_its_case_and_punctuation() -> None:
    found = find([asks("What is 3 + 4?", "7", "t:9")], [prompt("what is  3 + 4"), prompt("3 + 5")])
    (held,) = found.held
    assert (held.kind, held.source, held.there, held.share) == ("question", "e:1", "t:9", 1.0)
    assert (found.count, found.short) == (2, 2)


def test_signs_that_calculate_are_words() -> None:
    assert words("3 + 4") != words("3 - 4") != words("3 / 4")
    assert not find([asks("What is 3 - 4?")], [prompt("What is 3 + 4?")]).held


def test_thirteen_words_in_a_row_are_found_wherever_they_stand() -> None:
    reply = f"Listen. {LONG.upper()}, and slept."
    found = find([asks("Tell me a story", reply, "t:2")], [prompt(f"Sum up: {LONG}")])
    (held,) = found.held
    # 18 words: six runs, of which the four that lie in the sentence alone are in the reply.
    assert len(words(f"Sum up: {LONG}")) == 18
    assert (held.kind, held.there, held.share) == ("words", "t:2", 4 / 6)
    assert held.text in LONG
    assert not find([asks("x", reply)], [prompt(f"Sum up: {LONG}")], share=0.9).held
    twelve = " ".join(LONG.split()[:12])
    assert not find([asks("x", twelve)], [prompt(f"Sum up: {LONG}")]).held
    assert find([asks("x", twelve)], [prompt(f"Sum up: {LONG}")], n=12, share=0).held


def test_what_several_records_share_is_their_template() -> None:
    evals = [prompt(f"{LONG}. Name {one}", source=f"e:{one}") for one in ("a fish", "a bird")]
    found = find([asks(LONG)], evals)
    assert (found.held, found.part) == ([], [])
    assert found.shared == 6  # of the eighteen words that both begin with
    copies = [prompt(LONG, source="e:1"), prompt(LONG, source="e:2")]
    assert len(find([asks("x", LONG)], copies).held) == 2, "copies are one text, no template"


def test_every_question_of_a_long_talk_counts_and_answers_are_read() -> None:
    talk = Conversation(
        messages=(
            Message("system", "Be kind."),
            Message("user", "Hi there"),
            Message("assistant", "Hello"),
            Message("user", "Bye"),
            Message("assistant", "Bye"),
        ),
        source="t:1",
    )
    assert find([talk], [prompt("hi there!")]).held
    assert find([asks("x", LONG)], [prompt("Which story?", answer=LONG)]).held
    pair = Preference(
        prompt=(Message("user", "x"),),
        chosen=(Message("assistant", "no"),),
        rejected=(Message("assistant", LONG),),
        source="t:3",
    )
    assert find([pair], [prompt(LONG)]).held[0].there == "t:3"


def test_scripts_without_spaces_are_compared_by_their_signs() -> None:
    told = "老灯塔看守人每天晚上爬一百零七级台阶去点灯"
    assert find([asks("x", f"他说：{told}。")], [prompt(f"总结：{told}")]).held


def test_the_command_names_places_and_ends_with_2(project: Project, ptl: Ptl) -> None:
    rows = [{"prompt": "1 + 1?", "completion": "2"}, {"prompt": "Go on", "completion": LONG}]
    project.write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    problems = [{"problem": "1 + 1", "answer": "2"}, {"problem": LONG, "answer": "-"}]
    problems.append({"problem": "A new one", "answer": "-"})
    project.write("eval.jsonl", "".join(json.dumps(row) + "\n" for row in problems))
    names = ("train.jsonl", "eval.jsonl", "--columns", "prompt=problem")
    said = ptl("data", "overlap", *names)
    assert said.code == 2
    assert "eval.jsonl: 2 of 3 records are in train.jsonl" in said.out
    assert "eval.jsonl:1, at train.jsonl:1" in said.out
    assert "eval.jsonl:2, at train.jsonl:2" in said.out
    told = json.loads(ptl("data", "overlap", *names, "--json").out)["evals"]["eval.jsonl"]
    assert [held["kind"] for held in told["held"]] == ["question", "words"]
    project.write("other.jsonl", json.dumps(problems[2]) + "\n")
    said = ptl("data", "overlap", "train.jsonl", "other.jsonl", "--columns", "prompt=problem")
    assert said.code == 0
    assert "none of 1 record are in train.jsonl" in said.out
    assert ptl("data", "overlap", "train.jsonl", "nothing.jsonl").code == 2


def test_preflight_tells_near_copies_and_validate_does_not(project: Project, ptl: Ptl) -> None:
    project.write("train.jsonl", json.dumps({"prompt": "Go on", "completion": LONG}) + "\n")
    project.write("eval.jsonl", json.dumps({"prompt": f"Sum up: {LONG}", "completion": "x"}) + "\n")
    project.write(
        "mine.yaml",
        """
name: mine
model: ptl/nano
stages:
  - name: sft
    dataset: {use: jsonl, path: train.jsonl}
    method: {use: sft, learning_rate: 1e-3}
    eval: [{use: nll, dataset: {use: jsonl, path: eval.jsonl}}]
""",
    )
    from posttrain_recipes import api
    from posttrain_recipes.planning import overlap

    plan = api.plan("mine.yaml")
    (found,) = overlap.find(plan, None)
    assert isinstance(found, overlap.NearCopies)
    assert "has 57% of its runs of 13 words, at train.jsonl:1" in str(found)
    assert overlap.find(plan, overlap.RUN_BYTES) == []

"""Soft targets, data of replies and the reverse KL, each against numbers worked out otherwise."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from posttrain_recipes.engine.train import losses
from posttrain_recipes.methods.distill_on_policy import DistillOnPolicy, Teacher, _teachers_of
from posttrain_recipes.methods.prompt_distill import instructed
from posttrain_recipes.methods.sdft import SDFT
from posttrain_recipes.plugin import Conversation, Message, Prompt, UsageError
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.on_policy import Attempt, prompt_tokens
from posttrain_recipes.training.distill.teachers import SoftTargets, TokenizedReply
from posttrain_recipes.training.requests import derive_seed


def targets(rows: list[list[float]], ids: list[list[int]] | None = None) -> SoftTargets:
    logprobs = np.log(np.array(rows, np.float32))
    return teachers.soft_targets(np.array(ids or [[3, 5]] * len(rows), np.int32), logprobs)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_soft_targets_share_the_tail_in_proportion() -> None:
    made = targets([[0.6, 0.2], [0.5, 0.5]])
    assert made.weights.tolist() == [pytest.approx([0.75, 0.25]), pytest.approx([0.5, 0.5])]
    assert made.mass == pytest.approx(0.8 + 1.0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) + math.log(2)
    assert made.entropy == pytest.approx(entropy, rel=1e-6)


def test_what_the_wire_fills_in_weighs_nothing() -> None:
    made = teachers.soft_targets(
        np.array([[7, 0], [0, 0]]), np.array([[math.log(0.5), -99999.0], [-99999.0, -99999.0]])
    )
    assert made.weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert made.entropy == 0


def test_soft_targets_stand_where_the_reply_is_predicted() -> None:
    reply = TokenizedReply(prompt=[10, 11, 12], tokens=[3, 5])
    datum = teachers.soft_datum(reply, targets([[0.6, 0.2], [0.5, 0.5]]), scale=0.5)
    assert datum.model_input.to_ints() == [10, 11, 12, 3]
    inputs = datum.loss_fn_inputs
    ids, weights = (np.reshape(inputs[n].data, inputs[n].shape) for n in sorted(inputs))
    assert ids.tolist() == [[0, 0], [0, 0], [3, 5], [3, 5]]
    assert weights[:2].sum() == 0
    assert weights[2:].tolist() == [pytest.approx([0.375, 0.125]), pytest.approx([0.25, 0.25])]


def test_skipped_positions_come_first() -> None:
    datum = teachers.soft_datum(TokenizedReply([10, 11], [3, 5]), targets([[0.5, 0.5]]), scale=1.0)
    weights = np.reshape(datum.loss_fn_inputs["weights"].data, (3, 2))
    assert weights.sum(axis=1).tolist() == [0, 0, 1]


def test_a_policy_datum_is_zero_over_the_prompt() -> None:
    datum = teachers.policy_datum(TokenizedReply([10, 11], [3, 5]), [-1.0, -2.0], [0.25, -0.5])
    columns = {name: list(value.data) for name, value in datum.loss_fn_inputs.items()}
    assert columns == {
        "target_tokens": [11, 3, 5],
        "logprobs": [0.0, -1.0, -2.0],
        "advantages": [0.0, 0.25, -0.5],
    }


def test_cross_entropy_against_soft_targets_is_the_forward_kl_and_the_entropy() -> None:
    made = targets([[0.6, 0.2]], ids=[[0, 2]])
    student = torch.log_softmax(torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64), 0)
    loss = losses.cross_entropy(
        student[torch.tensor([0, 2])], {"weights": torch.tensor(made.weights[0])}, {}
    )
    kl = 0.75 * (math.log(0.75) - student[0]) + 0.25 * (math.log(0.25) - student[2])
    shown = teachers.shown([made]).metrics(loss.item())
    assert shown["kl"] == pytest.approx(kl.item(), abs=1e-6)
    assert shown["teacher/mass"] == pytest.approx(0.8)


def test_what_is_submitted_has_the_gradient_of_the_reverse_kl() -> None:
    """Over all tokens that could have been sampled, each as likely as the student finds it."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logq = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    logp = torch.log_softmax(logits, 0)
    kl = (logp.exp() * (logp - logq)).sum()
    (wanted,) = torch.autograd.grad(kl, logits, retain_graph=True)
    expected, value = torch.zeros(5, dtype=torch.float64), 0.0
    for token in range(5):
        attempt = Attempt([9], [token], logprobs=(logp[token].item(),))
        worth = logq[token].item() - attempt.logprobs[0]
        columns = teachers.policy_datum(attempt, attempt.logprobs, [worth]).loss_fn_inputs
        inputs = {n: torch.tensor(columns[n].data) for n in ("logprobs", "advantages")}
        loss = losses.importance_sampling(logp[token][None], inputs, {})
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        expected += logp[token].exp().detach() * gradient
        value += (logp[token].exp() * loss).item()
    assert torch.allclose(expected, wanted, atol=1e-6)
    assert value == pytest.approx(kl.item(), abs=1e-6)


# --- who teaches what ----------------------------------------------------------------------------


def prompt(**metadata: str) -> Prompt:
    return Prompt(messages=(Message("user", "hi"),), metadata=metadata, source="a.jsonl:3")


def test_a_teacher_may_have_prompts_of_its_own() -> None:
    both = [
        Teacher(stage="a", weight=3, where={"family": "sums"}),
        Teacher(stage="b"),
        Teacher(stage="c", where={"family": "tone"}),
    ]
    assert _teachers_of(prompt(family="sums"), both) == [(0, 0.75), (1, 0.25)]
    assert _teachers_of(prompt(), both) == [(1, 1.0)]


def test_a_prompt_that_nobody_teaches_is_named() -> None:
    with pytest.raises(UsageError, match=r"a\.jsonl:3: none of the teachers"):
        _teachers_of(prompt(), [Teacher(stage="a", where={"family": "sums"})])


def test_one_teacher_or_a_list() -> None:
    one = DistillOnPolicy.Config.model_validate({"teacher": {"stage": "a"}})
    assert [teacher.stage for teacher in one.teachers] == ["a"]
    many = DistillOnPolicy.Config.model_validate(
        {"teacher": [{"stage": "a"}, {"model": "ptl/nano", "weight": 2}]}
    )
    assert [teacher.weight for teacher in many.teachers] == [1, 2]
    with pytest.raises(ValidationError, match="the list of teachers is empty"):
        DistillOnPolicy.Config.model_validate({"teacher": []})


# --- prompts of teachers -------------------------------------------------------------------------


def test_instructions_come_before_a_system_message_of_the_prompt() -> None:
    user = Message("user", "hi")
    assert instructed((user,), "be brief") == (Message("system", "be brief"), user)
    with_system = (Message("system", "you are a cook"), user)
    assert instructed(with_system, "be brief")[0].content == "be brief\n\nyou are a cook"


def test_a_demonstration_is_shown_as_it_is() -> None:
    """Also where it has braces, which the template has too."""
    method = SDFT(SDFT.Config(template="{question} e.g. {answer}!"), Path())
    record = Conversation(
        messages=(Message("user", "as {answer}"), Message("assistant", "{question}"))
    )
    (shown,) = method._shown(record)
    assert shown == Message("user", "as {answer} e.g. {question}!")


def test_a_template_without_a_place_for_the_answer_is_refused() -> None:
    with pytest.raises(ValidationError, match="has to have"):
        SDFT.Config(template="{question}")


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    renderer: Any = SimpleNamespace(prompt=lambda messages: [1] * 10)
    made = prompt_tokens((), renderer, SimpleNamespace(max_tokens=6, max_length=16), "")
    assert made == [1] * 10
    with pytest.raises(UsageError, match=r"x:1: 10 tokens and a reply of max_tokens=7"):
        prompt_tokens((), renderer, SimpleNamespace(max_tokens=7, max_length=16), "x:1")


def test_seeds_differ_by_step_and_place_and_stay() -> None:
    seeds = {derive_seed(0, step, place) for step in range(30) for place in range(30)}
    assert len(seeds) == 900
    assert derive_seed(0, 3, 4) == 1343658576

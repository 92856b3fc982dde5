"""What a token of imitation weighs: its loss, its message, its turn, and what tools answered."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes import models
from posttrain_recipes.datasets.formats import RowParser
from posttrain_recipes.engine.train import losses as engine_losses
from posttrain_recipes.errors import UsageError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.methods.sft import SFT, Likelihood
from posttrain_recipes.plugin import Conversation, ModelRef
from posttrain_recipes.records import Message, Sample
from posttrain_recipes.training.rl import observations
from posttrain_recipes.training.rl.policy_gradient import PolicyGradient
from posttrain_recipes.training.rl.rollout import Group, Rollout, RolloutSegment, Segment
from posttrain_recipes.training.text import rendered
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from posttrain_recipes.training.text.examples import Example, averaged, tokenize, with_answers

RNG = np.random.default_rng(4)
BATCH = [
    Example([1, 5, 2, 8], [0.0, 0.0, 1.0, 1.0]),
    Example([3, 4, 1, 6, 9, 7, 2], [0.0, 1.0, 1.0, 0.0, 0.1, 0.1, 0.1]),
    Example([2, 3, 5], [1.0, 0.5, 0.5]),  # nothing predicts the first token
]
LOGP = [np.log(RNG.random(len(one.tokens) - 1)) for one in BATCH]


class Client:
    """An engine in float64 that finds log p of the targets in `LOGP`, and sums as ours does."""

    def __init__(self) -> None:
        self.leaves: list[torch.Tensor] = []
        self.loss = torch.zeros((), dtype=torch.float64)
        self.asked: list[str] = []

    def forward_backward(self, data: Sequence[Any], loss: str) -> Any:
        self.asked.append(loss)
        outputs = []
        for datum, logp in zip(data, LOGP, strict=True):
            leaf = torch.tensor(logp).requires_grad_()
            given = {k: torch.tensor(v.data).double() for k, v in datum.loss_fn_inputs.items()}
            self.loss = self.loss + engine_losses.find(loss).fn(leaf, given, {})
            self.leaves.append(leaf)
            outputs.append({"logprobs": SimpleNamespace(data=logp.tolist())})
        self.loss.backward()
        return SimpleNamespace(metrics={"loss:sum": self.loss.item()}, loss_fn_outputs=outputs)


def by_hand(average: str) -> list[np.ndarray]:
    """What each target weighs."""
    own = [np.array(one.weights[1:]) for one in BATCH]
    if average == "examples":
        return [w / w.sum() / len(BATCH) for w in own]
    if average == "turns":  # of 2 tokens; of 2 and of 3, a tenth as heavy; of 2, half as heavy
        own = [np.array([0, 1, 1]) / 2, np.array([1, 1, 0, 0, 0, 0]) / 2, np.array([1, 1]) / 4]
        own[1] = own[1] + np.array([0, 0, 0, 0.1, 0.1, 0.1]) / 3
    whole = sum(w.sum() for w in own)
    return [w / whole for w in own]


@pytest.mark.parametrize("average", ["tokens", "turns", "examples"])
@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_value_and_gradient_of_imitation(loss: Any, average: Any) -> None:
    """-sum w log p, or -sum w p log p with no gradient through p, each in one pass."""
    client, objective = Client(), Likelihood(loss, average)
    output = objective.submit(client, BATCH)  # type: ignore[arg-type]
    told = objective.metrics(BATCH, output)  # type: ignore[arg-type]
    value = 0.0
    for w, logp, leaf in zip(by_hand(average), LOGP, client.leaves, strict=True):
        w = w * (np.exp(logp) if loss == "dft" else 1.0)
        value -= (w * logp).sum()
        np.testing.assert_allclose(leaf.grad, -w, rtol=2e-7, atol=1e-12)  # weights are float32
    assert told["train/loss"] == pytest.approx(value, rel=1e-6)
    nll = -sum((w * logp).sum() for w, logp in zip(by_hand(average), LOGP, strict=True))
    assert told.get("train/nll", told["train/loss"]) == pytest.approx(nll, rel=1e-6)
    assert client.asked == [*SFT(SFT.Config(loss=loss)).needs][0].split(":")[1:]


@pytest.mark.parametrize("average", ["turns", "examples"])
def test_an_example_weighs_the_same_however_long_the_others_are(average: Any) -> None:
    short, long = Example([1, 2, 3], [0, 0, 1.0]), Example([1] * 40, [0] + [1.0] * 39)
    shares = [math.fsum(one.weights[1:]) for one in averaged([short, long], average)]
    assert shares == pytest.approx([0.5, 0.5])
    assert math.fsum(averaged([short, long])[0].weights[1:]) == pytest.approx(1 / 40)


@pytest.mark.parametrize("average", ["tokens", "turns", "examples"])
def test_the_gradient_does_not_depend_on_how_a_batch_is_packed(
    average: Any, tmp_path: Path
) -> None:
    """Passes over parts of it add up to the pass over all of it, as the engine's do."""
    from transformers import AutoModelForCausalLM

    from tests.engine_model import build

    folder = str(build(tmp_path))
    slopes = []
    for cuts in ([BATCH], [[one] for one in BATCH], [BATCH[:1], BATCH[1:]]):
        model = AutoModelForCausalLM.from_pretrained(folder).double()
        weighed = dict(zip(map(id, BATCH), averaged(BATCH, average), strict=True))
        for part in cuts:
            loss = torch.zeros((), dtype=torch.float64)
            for one in (weighed[id(example)] for example in part):
                logits = model(input_ids=torch.tensor([one.tokens[:-1]])).logits[0]
                logp = logits.log_softmax(-1).gather(1, torch.tensor(one.tokens[1:])[:, None])
                loss = loss - (torch.tensor(one.weights[1:])[:, None] * logp).sum()
            loss.backward()  # as the engine adds up its passes until the optimizer's step
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for found in slopes[1:]:
        torch.testing.assert_close(found, slopes[0])


# --- messages ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> ChatRenderer:
    return load_renderer(models.resolve("ptl/tiny"))


ROW: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {"role": "user", "content": "What is 6 times 7?"},
        {"role": "assistant", "content": "<calculate>6 * 7</calculate>", "weight": 0.25},
        {"role": "tool", "content": "forty-two"},
        {"role": "assistant", "content": "42", "weight": 2},
    ]
}


def conversation(row: Any) -> Conversation:
    made = RowParser("a", {}).parse(json.loads(json.dumps(row)), 1)
    assert isinstance(made, Conversation)
    return made


def by_weight(renderer: ChatRenderer, example: Any) -> dict[float, str]:
    """What is said with each weight."""
    found: dict[float, list[int]] = {}
    for token, weight in zip(example.tokens, example.weights, strict=True):
        found.setdefault(weight, []).append(token)
    return {weight: renderer.decode(tokens) for weight, tokens in found.items()}


def test_a_messages_weight_goes_from_the_data_to_the_loss(tiny: ChatRenderer) -> None:
    messages = conversation(ROW).messages
    example = tokenize(messages, tiny, max_length=200)
    said = by_weight(tiny, example)
    assert said.keys() == {0.0, 0.25, 2.0}
    assert said[0.25].startswith("<calculate>6 * 7</calculate>")
    assert said[2.0].startswith("42")
    assert "forty-two" in said[0.0]


def test_what_a_tool_answered_is_learned_where_it_weighs(tiny: ChatRenderer) -> None:
    messages = conversation({"messages": ROW["messages"]}).messages
    given = with_answers(messages, 0.1)
    example = tokenize(given, tiny, max_length=200)
    assert by_weight(tiny, example)[0.1].strip() == "forty-two"
    assert example.tokens == tokenize(messages, tiny, max_length=200).tokens
    view = rendered.learned(messages, tiny, SFT.Config(tool_weight=0.1))
    assert list(view.weights) == example.weights, "what `ptl data show` shows"
    own = {**ROW["messages"][2], "weight": 0}
    row = {"messages": [*ROW["messages"][:2], own, ROW["messages"][3]]}
    still = with_answers(conversation(row).messages, 0.1)
    assert 0.1 not in tokenize(still, tiny, max_length=200).weights, "the data's goes before"


def test_weights_that_cannot_be_are_refused() -> None:
    from posttrain_recipes.datasets.faults import RowError

    for weight in (-0.5, "1", True, 1e9, [1]):
        row = {"messages": [ROW["messages"][0], {"role": "assistant", "content": "a"}]}
        row["messages"][1] = {"role": "assistant", "content": "a", "weight": weight}
        with pytest.raises(RowError, match="from 0 to 1,000"):
            conversation(row)


def test_a_teachers_distribution_is_of_one_whole_reply(tiny: ChatRenderer) -> None:
    from posttrain_recipes.methods.distill_off_policy import DistillOffPolicy

    method = DistillOffPolicy(DistillOffPolicy.Config(teacher=ModelRef(model="ptl/tiny")))
    stage: Any = SimpleNamespace(
        train=[Conversation(messages=conversation(ROW).messages)], renderer=tiny
    )
    with pytest.raises(UsageError, match="one reply, whole"):
        method.train(stage)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_tool_weight_without_answers_of_tools_is_told(
    weight: float, tiny: ChatRenderer, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr("posttrain_recipes.methods.sft.supervised.train", lambda *given: None)
    says = (Message("user", "Hi"), Message("assistant", "Hello"))
    stage: Any = SimpleNamespace(name="s", train=[Conversation(messages=says)], renderer=tiny)
    SFT(SFT.Config(tool_weight=weight)).train(stage)
    assert ("'tool_weight' changes nothing" in caplog.text) == bool(weight)


# --- what an environment answered ----------------------------------------------------------------


def test_the_loss_on_answers_is_the_mean_over_episodes() -> None:
    """lambda / (rollouts * groups) * 1/|o| for each token that was read between two replies."""

    def rollout(marks: str) -> Rollout:
        own = [mark == "w" for mark in marks]
        segment = Segment(list(range(len(marks))), own, [0.0] * len(marks))
        return Rollout([segment], Sample((), ""), [])

    group = Group([rollout("pppwwoowo" + "w"), rollout("ppwww"), rollout("pwow")])
    sent: list[Any] = []

    def forward_backward(data: list[Any], loss: str) -> str:
        sent.append((data, loss))
        return "future"

    client: Any = SimpleNamespace(forward_backward=forward_backward)
    config = GRPO.Config(observation_weight=0.3)
    [(items, future)] = observations.forward_backward(client, [group], config, size=2)
    [(data, loss)] = sent
    assert (loss, future) == ("cross_entropy", "future")
    assert [item.rollout for item in items] == [group.rollouts[0], group.rollouts[2]]
    share = 0.3 / (3 * 2)
    assert list(data[0].loss_fn_inputs["weights"].data) == pytest.approx(
        [share / 3 * mark for mark in (0, 0, 0, 0, 1, 1, 0, 1, 0)]
    )
    assert list(data[1].loss_fn_inputs["weights"].data) == pytest.approx([0, share, 0])
    outputs: Any = [{"logprobs": SimpleNamespace(data=[-1.0] * 8 + [-9.0])}] + [
        {"logprobs": SimpleNamespace(data=[-9.0, -5.0, -9.0])}
    ]
    nll = {"observations/nll": pytest.approx((1.0 + 5.0) / 2)}  # of the episodes with answers
    assert observations.metrics(items, outputs) == nll
    # What the policy gradient learned of the same episodes is neither, and has its own metrics.
    own: list[Any] = [RolloutSegment(one, 0) for one in group.rollouts]
    lengths = [len(one.segments[0].tokens) - 1 for one in group.rollouts]
    theirs: list[Any] = [{"logprobs": SimpleNamespace(data=[-0.5] * n)} for n in lengths]
    told = PolicyGradient(config).told([group], [*own, *items], [*theirs, *outputs])
    alone = PolicyGradient(config).told([group], own, theirs)
    assert told == {**alone, **nll}
    assert not observations.forward_backward(client, [group], GRPO.Config(), size=2)
    assert "loss:cross_entropy" in GRPO(config).needs

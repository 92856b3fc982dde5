"""What the methods ask of the engine, and the loss, gradient and metrics that they give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes import registry
from posttrain_recipes.errors import UsageError
from posttrain_recipes.methods.cpo import CPO
from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.methods.kto import KTO
from posttrain_recipes.methods.orpo import ORPO
from posttrain_recipes.methods.reward_model import RewardModel
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.methods.simpo import SimPO
from posttrain_recipes.plugin import Method
from posttrain_recipes.records import Conversation, Labelled, Message, Preference, Record
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.loops import supervised
from tests.unit.test_kto_baseline import labelled_as

# --- an engine that keeps what it was asked, and a stage -----------------------------------------


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Letters:
    """A renderer: a letter a token, `.` ends a turn; the last message's letters are learned."""

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        *before, last = (f"{m.content}." for m in messages)
        tokens = [ord(letter) for letter in "".join(before) + last]
        return tokens, [0.0] * (len(tokens) - len(last)) + [1.0] * len(last)


@dataclass
class Client:
    """Keeps what it was asked."""

    asked: list[tuple[Any, Any]] = field(default_factory=list)

    def forward_backward(self, data: Any, loss_fn: str) -> Future[None]:
        self.asked.append((data, loss_fn))
        return done(None)

    def forward_backward_custom(self, data: Any, loss_fn: Any) -> Future[None]:
        self.asked.append((data, loss_fn))
        return done(None)


class Stage:
    """What a method needs of a stage, with a reference whose log p follow from the tokens."""

    seed = 0
    start = object()
    renderer = Letters()

    def __init__(self, train: Sequence[Record]) -> None:
        self.train = train
        self.asked: list[tuple[int, ...]] = []

    def sampling_client(self, checkpoint: object) -> Stage:
        assert checkpoint is self.start
        return self

    def compute_logprobs(self, model_input: Any) -> Future[list[float | None]]:
        tokens = tuple(model_input.to_ints())
        self.asked.append(tokens)
        return done([None, *reference(tokens)])

    def wait(self, future: Future[Any]) -> Any:
        return future.result()


def reference(tokens: Sequence[int]) -> list[float]:
    return (-np.random.default_rng(list(tokens)).exponential(size=len(tokens) - 1)).tolist()


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], Any]]:
    """`begin(method, stage)`: the examples and the objective that the loop would be given."""

    def begin(method: Method, stage: Stage) -> tuple[list[Any], Any]:
        given: list[Any] = []
        monkeypatch.setattr(supervised, "train", lambda *arguments: given.extend(arguments))
        method.train(stage)  # type: ignore[arg-type]
        kept, config, examples, objective = given
        assert (kept, config) == (stage, method.config)
        return list(examples), objective

    return begin


def word(random: np.random.Generator, longest: int) -> tuple[Message, ...]:
    letters = random.integers(97, 123, size=int(random.integers(1, longest)))
    return (Message("assistant", bytes(letters.tolist()).decode()),)


def preferences(count: int) -> list[Preference]:
    random = np.random.default_rng(7)
    return [
        Preference(
            prompt=word(random, 4),
            chosen=word(random, 6),
            rejected=word(random, 6),
            source=f"pairs.jsonl:{n}",
        )
        for n in range(count)
    ]


def labelled(count: int) -> list[Labelled]:
    random = np.random.default_rng(8)
    return [
        Labelled(
            prompt=word(random, 4),
            completion=word(random, 6),
            label=bool(random.random() < 0.4),
            source=f"replies.jsonl:{n}",
        )
        for n in range(count)
    ]


# --- sft -----------------------------------------------------------------------------------------


def test_sft_is_a_mean_over_the_tokens_of_the_batch(begin: Any) -> None:
    words = [("ab", "c"), ("d", "ef")]
    records = [
        Conversation(messages=(Message("user", asked), Message("assistant", said)))
        for asked, said in words
    ]
    batch, objective = begin(SFT(SFT.Config()), Stage(records))
    client = Client()
    objective.submit(client, batch)
    [(data, loss_fn)] = client.asked
    assert loss_fn == "cross_entropy"
    weights = [datum.loss_fn_inputs["weights"].data for datum in data]
    assert weights == [pytest.approx([0, 0, 1 / 5, 1 / 5]), pytest.approx([0, 1 / 5, 1 / 5, 1 / 5])]
    targets = [bytes(datum.loss_fn_inputs["target_tokens"].data) for datum in data]
    assert targets == [b"b.c.", b".ef."]
    assert [bytes(datum.model_input.to_ints()) for datum in data] == [b"ab.c", b"d.ef"]
    assert objective.usage(batch).train == 10


@pytest.mark.parametrize(
    ("options", "weight", "told"),
    [({}, None, 1), ({"train_on": "last"}, None, 0), ({"train_on": "all"}, None, 0), ({}, 0.0, 0)],
)
def test_sft_tells_once_of_replies_that_it_does_not_learn(
    begin: Any,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    weight: float | None,
    told: int,
) -> None:
    turns = (
        Message("user", "a"),
        Message("assistant", "b", weight=weight),
        Message("user", "c"),
        Message("assistant", "d"),
    )
    records = [Conversation(messages=turns, source=f"x.jsonl:{n}") for n in (1, 2)]
    begin(SFT(SFT.Config(**options)), Stage(records))
    assert caplog.text.count("x.jsonl:1: has replies before the last one") == told
    assert "x.jsonl:2" not in caplog.text


def test_dpo_counts_tails_of_longer_replies_less_of_both_policies(begin: Any) -> None:
    """Value and gradient of every token, from numbers that the loss is not given."""
    records = preferences(6)
    method = DPO(DPO.Config(beta=0.5, ld_alpha=0.25))
    batch, objective = begin(method, Stage(records))
    objective.prepare(batch)
    client = Client()
    objective.submit(client, batch)
    [(data, loss_fn)] = client.asked
    random = np.random.default_rng(11)
    policy = [-random.exponential(size=datum.model_input.length) for datum in data]
    leaves = [torch.tensor(own, requires_grad=True) for own in policy]
    loss, _ = loss_fn(data, leaves)
    loss.backward()
    value, slopes = 0.0, []
    for place, record in enumerate(records):
        lengths = [len(str(reply[0].content)) + 1 for reply in (record.chosen, record.rejected)]
        counts, h = [], 0.0
        for row, length in enumerate(lengths):
            own = policy[2 * place + row]
            tokens = [int(t) for t in data[2 * place + row].loss_fn_inputs["target_tokens"].data]
            theirs = reference([data[2 * place + row].model_input.to_ints()[0], *tokens])
            before = len(own) - length
            counts.append(
                [0.0] * before + [1.0 if t < min(lengths) else 0.25 for t in range(length)]
            )
            h += (1 - 2 * row) * float(np.dot(counts[row], own - np.array(theirs)))
        share = float(sigmoid(np.array(-0.5 * h)))
        value -= np.log(1 - share) / len(records)
        slopes += [
            -(1 - 2 * row) * 0.5 * share / len(records) * np.array(own)
            for row, own in enumerate(counts)
        ]
    assert any(0.25 in item.counts[0] or 0.25 in item.counts[1] for item in batch)
    assert float(loss) == pytest.approx(value, rel=1e-6)
    for leaf, slope in zip(leaves, slopes, strict=True):
        np.testing.assert_allclose(leaf.grad, slope, rtol=1e-5, atol=1e-9)


# --- losses of whole replies ---------------------------------------------------------------------

Numbers = Mapping[str, np.ndarray]
"""`sums` (log p), `means` (per token), `ratios` (log p/p_ref), each (B, 2); `good` (B,)."""
Expected = tuple[float, np.ndarray, dict[str, float]]
"""The loss, its derivative by the sums (B, 2), and metrics."""


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def pairwise(rewards: np.ndarray, logps: np.ndarray) -> dict[str, float]:
    return {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
        "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).mean(),
        "logps/chosen": logps[:, 0].mean(),
        "logps/rejected": logps[:, 1].mean(),
    }


def contrast(slope: np.ndarray) -> np.ndarray:
    return np.stack([slope, -slope], axis=1)


def dpo(n: Numbers, keep: float, flip: float) -> Expected:
    z = 0.5 * (n["ratios"][:, 0] - n["ratios"][:, 1])
    values = -keep * np.log(sigmoid(z)) - flip * np.log(sigmoid(-z))
    slope = 0.5 * (-keep * sigmoid(-z) + flip * sigmoid(z)) / len(z)
    return values.mean(), contrast(slope), pairwise(0.5 * n["ratios"], n["sums"])


def hinge(n: Numbers) -> Expected:
    z = 0.5 * (n["ratios"][:, 0] - n["ratios"][:, 1])
    slope = np.where(z < 1, -0.5, 0.0) / len(z)
    return np.maximum(0, 1 - z).mean(), contrast(slope), pairwise(0.5 * n["ratios"], n["sums"])


def ipo(n: Numbers) -> Expected:
    lengths = n["sums"] / n["means"]
    mean = n["ratios"] / lengths
    gap = mean[:, 0] - mean[:, 1] - 1 / (2 * 0.5)
    slopes = contrast(2 * gap / len(gap)) / lengths
    return (gap**2).mean(), slopes, pairwise(0.5 * n["ratios"], n["sums"])


def orpo(n: Numbers) -> Expected:
    share = np.exp(n["means"])
    odds = share / (1 - share)
    log_odds = np.log(odds[:, 0] / odds[:, 1])
    slopes = contrast(-0.3 * sigmoid(-log_odds)) / (1 - share)
    slopes[:, 0] -= 1
    loss = (-n["means"][:, 0] - 0.3 * np.log(sigmoid(log_odds))).mean()
    return (
        loss,
        slopes / len(slopes) / (n["sums"] / n["means"]),
        {
            **pairwise(0.3 * n["means"], n["means"]),
            "nll_loss": -n["means"][:, 0].mean(),
            "log_odds_ratio": np.log(sigmoid(log_odds)).mean(),
            "log_odds_chosen": log_odds.mean(),
        },
    )


def simpo(n: Numbers, nll_weight: float = 0.0) -> Expected:
    z = 2.5 * (n["means"][:, 0] - n["means"][:, 1]) - 0.7
    slopes = contrast(-2.5 * sigmoid(-z))
    slopes[:, 0] -= nll_weight
    nll = -n["means"][:, 0].mean()
    return (
        -np.log(sigmoid(z)).mean() + nll_weight * nll,
        slopes / len(z) / (n["sums"] / n["means"]),
        {**pairwise(2.5 * n["means"], n["means"]), "nll_loss": nll},
    )


def cpo(n: Numbers) -> Expected:
    z = 0.2 * (n["sums"][:, 0] - n["sums"][:, 1])
    slopes = contrast(-0.2 * sigmoid(-z))
    slopes[:, 0] -= 0.7 * n["means"][:, 0] / n["sums"][:, 0]
    nll = -n["means"][:, 0].mean()
    return (
        -np.log(sigmoid(z)).mean() + 0.7 * nll,
        slopes / len(z),
        {**pairwise(0.2 * n["sums"], n["sums"]), "nll_loss": nll},
    )


def kto(n: Numbers) -> Expected:
    own, other = n["ratios"].T
    z = max(0.0, other.mean())
    good = n["good"]
    sign, weight = np.where(good, 1.0, -1.0), np.where(good, 1.5, 0.5)
    share = sigmoid(0.2 * sign * (own - z))
    slope = -weight * 0.2 * sign * share * (1 - share) / len(own)
    chosen, rejected = 0.2 * own[good].mean(), 0.2 * own[~good].mean()
    return (
        (weight * (1 - share)).mean(),
        np.stack([slope, 0 * slope], axis=1),
        {
            "kl": z,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": n["sums"][good, 0].mean(),
            "logps/rejected": n["sums"][~good, 0].mean(),
        },
    )


CASES: dict[str, tuple[Method, Callable[[Numbers], Expected]]] = {
    "dpo": (DPO(DPO.Config(beta=0.5)), lambda n: dpo(n, 1.0, 0.0)),
    "conservative": (DPO(DPO.Config(beta=0.5, label_smoothing=0.1)), lambda n: dpo(n, 0.9, 0.1)),
    "robust": (
        DPO(DPO.Config(beta=0.5, loss="robust", label_smoothing=0.1)),
        lambda n: dpo(n, 0.9 / 0.8, -0.1 / 0.8),
    ),
    "hinge": (DPO(DPO.Config(beta=0.5, loss="hinge")), hinge),
    "ipo": (DPO(DPO.Config(beta=0.5, loss="ipo")), ipo),
    "orpo": (ORPO(ORPO.Config(beta=0.3)), orpo),
    "simpo": (SimPO(SimPO.Config(beta=2.5, gamma=0.7)), simpo),
    "cpo_simpo": (
        SimPO(SimPO.Config(beta=2.5, gamma=0.7, nll_weight=0.4)),
        lambda n: simpo(n, 0.4),
    ),
    "cpo": (CPO(CPO.Config(beta=0.2, nll_weight=0.7)), cpo),
    "kto": (KTO(KTO.Config(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)), kto),
}


@pytest.mark.parametrize("times", [0.8, 1.5])
@pytest.mark.parametrize("name", CASES)
def test_the_engine_is_given_the_papers_loss_gradient_and_metrics(
    name: str, times: float, begin: Any
) -> None:
    """`times` log p_ref is about log p: the policy finds the replies likelier, or less so."""
    method, expected = CASES[name]
    records: Sequence[Record] = labelled(40) if method.name == "kto" else preferences(40)
    stage = Stage(records)
    batch, objective = begin(method, stage)
    client = Client()
    objective.prepare(batch)
    objective.submit(client, batch)
    [(data, loss_fn)] = client.asked
    tokens = [[*d.model_input.to_ints(), d.loss_fn_inputs["target_tokens"].data[-1]] for d in data]
    weights = [np.array(d.loss_fn_inputs["weights"].data) for d in data]
    random = np.random.default_rng(9)
    theirs = [np.array(reference(t)) for t in tokens]
    ours = [r * random.uniform(0.8 * times, 1.2 * times, size=len(r)) for r in theirs]

    logprobs = [torch.tensor(p, dtype=torch.float32, requires_grad=True) for p in ours]
    loss, metrics = loss_fn(data, logprobs)
    loss.backward()

    def total(values: list[np.ndarray]) -> np.ndarray:
        return np.array([w @ v for w, v in zip(weights, values, strict=True)]).reshape(-1, 2)

    sums, lengths = total(ours), total([np.ones_like(w) for w in weights])
    numbers = {"sums": sums, "means": sums / lengths, "ratios": sums - total(theirs)}
    if method.name == "kto":
        numbers["good"] = np.array([r.label for r in records])  # type: ignore[attr-defined]
    wanted, slopes, found = expected(numbers)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    for slope, weight, logprob in zip(slopes.flatten(), weights, logprobs, strict=True):
        np.testing.assert_allclose(logprob.grad, slope * weight, rtol=2e-3, atol=1e-7)
    assert metrics == pytest.approx(found, rel=1e-4, abs=1e-5)
    needs_reference = method.name in ("dpo", "kto")
    assert stage.asked == ([tuple(t) for t in tokens] if needs_reference else [])


def test_every_method_of_preferences_is_held_to_its_formula() -> None:
    """A new one has to join the cases above, or the tests of rewards below."""
    takers = {
        entry.name
        for entry in registry.load()
        if issubclass(entry.cls, Method)
        and entry.distribution == "posttrain-recipes"
        and set(entry.cls.takes) & {Preference, Labelled}
    }
    assert takers <= {method.name for method, _ in CASES.values()} | {"reward_model"}


def test_the_data_of_a_pair_are_its_chosen_and_its_rejected_reply(begin: Any) -> None:
    record = Preference(
        prompt=(Message("user", "ab"),),
        chosen=(Message("assistant", "cd"),),
        rejected=(Message("assistant", "e"),),
    )
    batch, objective = begin(DPO(DPO.Config()), Stage([record]))
    client = Client()
    objective.prepare(batch)
    objective.submit(client, batch)
    [(data, _)] = client.asked
    assert [bytes(d.model_input.to_ints()) for d in data] == [b"ab.cd", b"ab.e"]
    assert [d.loss_fn_inputs["weights"].data for d in data] == [[0, 0, 1, 1, 1], [0, 0, 1, 1]]
    assert objective.usage(batch).train == 11


def test_the_reference_is_asked_once_for_each_reply(begin: Any) -> None:
    stage = Stage(preferences(3))
    batch, objective = begin(DPO(DPO.Config()), stage)
    for epoch in (batch, batch[::-1]):
        objective.prepare(epoch)
        objective.prepare(epoch)
        objective.submit(Client(), epoch)
    assert stage.asked == [tuple(e.tokens) for item in batch for e in item.examples]


def test_what_is_logged_goes_by_its_name(begin: Any) -> None:
    class Output:
        metrics = {"loss:sum": 0.5, "surrogate_loss:sum": 9.0, "rewards/chosen": 1.0, "kl": 2.0}

    _, objective = begin(DPO(DPO.Config()), Stage(preferences(1)))
    assert objective.metrics([], Output()) == {"train/loss": 0.5, "rewards/chosen": 1.0, "kl": 2.0}
    _, objective = begin(SFT(SFT.Config()), Stage([]))
    assert objective.metrics([], Output()) == {"train/loss": 0.5}


# --- kto -----------------------------------------------------------------------------------------


def test_kto_takes_its_baseline_of_replies_to_other_prompts(begin: Any) -> None:
    """So that a pair's two replies never stand in for each other; of few, some stand in twice."""
    batch, _ = begin(KTO(KTO.Config()), Stage(labelled_as("ab", "ac", "de")))
    pairs = [[bytes(e.tokens) for e in item.examples] for item in batch]
    assert [own for own, _ in pairs] == [b"a.b.", b"a.c.", b"d.e."]
    assert [other for _, other in pairs][:2] == [b"a.e.", b"a.e."]
    assert pairs[2][1] in (b"d.b.", b"d.c.")


def test_kto_of_one_prompt_says_what_it_lacks(begin: Any) -> None:
    record = Labelled(
        prompt=(Message("user", "a"),), completion=(Message("assistant", "b"),), label=True
    )
    with pytest.raises(UsageError, match="replies to more than one prompt"):
        begin(KTO(KTO.Config()), Stage([record, record]))


def test_a_batch_of_one_label_has_no_margin(begin: Any) -> None:
    records = [r for r in labelled(40) if r.label]
    batch, objective = begin(KTO(KTO.Config()), Stage(records))
    client = Client()
    objective.prepare(batch)
    objective.submit(client, batch)
    [(data, loss_fn)] = client.asked
    logprobs = [torch.zeros(len(d.model_input.to_ints()), requires_grad=True) for d in data]
    _, metrics = loss_fn(data, logprobs)
    assert set(metrics) == {"kl", "rewards/chosen", "logps/chosen"}


# --- reward_model --------------------------------------------------------------------------------


@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_reward_model_compares_the_log_odds_of_two_verdicts(begin: Any, centering: float) -> None:
    records = preferences(12)
    method = RewardModel(RewardModel.Config(centering=centering))
    batch, objective = begin(method, Stage(records))
    client = Client()
    objective.prepare(batch)
    objective.submit(client, batch)
    [(data, loss_fn)] = client.asked
    ends = [bytes(d.model_input.to_ints()).decode() for d in data[:2]]
    record = records[0]
    for end, reply in zip(ends, (record.chosen, record.rejected), strict=True):
        assert end == f"{record.prompt[0].content}.{reply[0].content}.{verdicts.QUESTION}."
    for datum in data:
        targets = datum.loss_fn_inputs["target_tokens"]
        assert targets.shape == [len(datum.model_input.to_ints()), 2]
        assert bytes(targets.data[-2:]) == b"yn"
        assert set(targets.data[:-2]) == {0}

    random = np.random.default_rng(4)
    given = [random.normal(size=(len(d.model_input.to_ints()), 2)) for d in data]
    logprobs = [torch.tensor(g, requires_grad=True) for g in given]
    loss, metrics = loss_fn(data, logprobs)
    loss.backward()
    rewards = np.array([g[-1, 0] - g[-1, 1] for g in given]).reshape(-1, 2)
    gap, total = rewards[:, 0] - rewards[:, 1], rewards.sum(1)
    assert loss.item() == pytest.approx(
        (-np.log(sigmoid(gap)) + centering * total**2).mean(), rel=1e-9
    )
    slopes = contrast(-sigmoid(-gap)) + 2 * centering * total[:, None]
    for slope, logprob in zip(slopes.flatten() / len(gap), logprobs, strict=True):
        wanted = np.zeros(logprob.shape)
        wanted[-1] = slope, -slope
        np.testing.assert_allclose(logprob.grad, wanted, rtol=1e-9, atol=1e-15)
    assert metrics == pytest.approx(
        {
            "accuracy": (gap > 0).mean(),
            "margin": gap.mean(),
            "mean_reward": rewards.mean(),
            "min_reward": rewards.min(),
            "max_reward": rewards.max(),
        }
    )
    assert objective.usage(batch).train == sum(len(d.model_input.to_ints()) for d in data)


def test_a_judged_reply_that_is_too_long_is_named(begin: Any) -> None:
    with pytest.raises(UsageError, match=r":0 \(chosen\): \d+ tokens with the question"):
        begin(RewardModel(RewardModel.Config(max_length=20)), Stage(preferences(2)))

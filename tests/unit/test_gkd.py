"""The generalized Jensen-Shannon divergence of GKD and SDPO, against formulas of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.gkd import GKD, _MixedPrompt, _Mixture
from posttrain_recipes.plugin import ModelRef
from posttrain_recipes.training.distill import divergence, teachers
from posttrain_recipes.training.distill.on_policy import Attempt
from posttrain_recipes.training.distill.teachers import Likeliest

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
V, T = 7, 3
RNG = np.random.default_rng(11)


def kl(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def expected(p: Sequence[float], q: Sequence[float], beta: float) -> float:
    """Equation 1 of arXiv 2306.13649, and its limits, term by term."""
    if beta in (0, 1):
        return kl(p, q) if beta else kl(q, p)
    m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lumped(row: Any, ids: Sequence[int]) -> list[float]:
    kept = [float(row[i]) for i in ids]
    return [*kept, 1 - math.fsum(kept)]


@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_are_those_of_the_lumped_outcomes(beta: float) -> None:
    """The gradient by the student's logits, by central differences of the formula."""
    z, q = RNG.normal(size=(T, V)), softmax(RNG.normal(size=(T, V)))
    ids = np.argsort(-q, -1)[:, :3]

    def formula(logits: Any) -> float:
        p = softmax(logits)
        rows = zip(p, q, ids, strict=True)
        return math.fsum(expected(lumped(a, i), lumped(b, i), beta) for a, b, i in rows)

    leaf = torch.tensor(z, requires_grad=True)
    picked = torch.tensor(ids)
    logq = torch.tensor(np.log(np.take_along_axis(q, ids, -1)))
    own = leaf.log_softmax(-1).gather(-1, picked)
    found = divergence.top_k_jsd(own, logq, torch.ones_like(picked, dtype=torch.bool), beta)
    found.sum().backward()
    assert found.sum().item() == pytest.approx(formula(z), rel=1e-9)
    step = np.zeros_like(z)
    for place in np.ndindex(*z.shape):
        step[place] = 1e-5
        slope = (formula(z + step) - formula(z - step)) / 2e-5
        assert leaf.grad is not None
        assert leaf.grad[place].item() == pytest.approx(slope, abs=1e-8)
        step[place] = 0


@pytest.mark.parametrize("beta", BETAS)
def test_lumping_outcomes_is_a_lower_bound_that_rises_to_the_whole(beta: float) -> None:
    p, q = softmax(RNG.normal(size=V)), softmax(RNG.normal(size=V))
    whole = expected(p.tolist(), q.tolist(), beta)
    order = np.argsort(-q)
    values = []
    for k in range(1, V):
        logs = [torch.tensor(np.log(x[order[:k]]))[None] for x in (p, q)]
        known = torch.ones(1, k, dtype=torch.bool)
        values.append(divergence.top_k_jsd(logs[0], logs[1], known, beta).item())
    assert values == sorted(values)
    assert values[-1] == pytest.approx(whole, rel=1e-9)


def test_what_the_wire_filled_in_is_one_of_the_others() -> None:
    logp = torch.tensor([[-1.0, -0.5]], requires_grad=True)
    logq = torch.tensor([[-0.7, -99999.0]])
    found = divergence.top_k_jsd(logp, logq, logq > teachers.MASKED, 0.5)
    alone = divergence.top_k_jsd(logp[:, :1], logq[:, :1], torch.tensor([[True]]), 0.5)
    assert found.item() == pytest.approx(alone.item())
    found.backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None
    assert logp.grad[0, 1].item() == 0


@pytest.mark.parametrize("beta", BETAS)
def test_where_the_teacher_leaves_nothing_to_others_all_is_finite(beta: float) -> None:
    """Float32 log-probabilities may come to a little more than 1."""
    logq = torch.tensor([[-1e-8, -30.0]])
    for student in ([[-0.1, -3.0]], [[1e-7, -40.0]], [[-25.0, -1e-7]]):
        logp = torch.tensor(student, requires_grad=True)
        found = divergence.top_k_jsd(logp, logq, torch.ones_like(logq, dtype=torch.bool), beta)
        found.sum().backward()
        assert logp.grad is not None
        assert torch.isfinite(found).all()
        assert torch.isfinite(logp.grad).all()


def test_the_loss_is_a_mean_over_the_last_positions_of_replies() -> None:
    reads = [
        Likeliest(np.array([[1, 2]] * n), np.log(np.full((n, 2), 0.4, np.float32))) for n in (1, 2)
    ]
    flat = [torch.full((n, 2), math.log(0.25), requires_grad=True) for n in (3, 2)]
    given = [flat[0], flat[1].reshape(-1)]  # as a server without shapes answers
    loss, _ = divergence.of_replies(reads, 0.5, 1 / 3)([], given)
    each = expected([0.25, 0.25, 0.5], [0.4, 0.4, 0.2], 0.5)
    assert loss.item() == pytest.approx(each, rel=1e-6)
    loss.backward()
    assert flat[0].grad is not None
    assert flat[0].grad[:2].abs().sum() == 0


def test_ratios_are_of_tokens_that_the_teacher_named() -> None:
    q = Likeliest(np.array([[5, 0], [3, 5]]), np.array([[-1.0, -99999.0], [-2.0, -3.0]]))
    assert q.ratios([0, 5], [-0.5, -0.25]) == [None, 2.75]


# --- who writes ----------------------------------------------------------------------------------


def mixture(share: float, others: str = "data", seed: int = 0) -> tuple[_Mixture, list[str]]:
    """The objective, with a student, a teacher and an engine that note who was asked to write."""
    asked: list[str] = []
    stage: Any = SimpleNamespace(
        seed=seed,
        resume=None,
        wait=lambda found: found,
        watch=lambda *shown: None,
        resolve=lambda ref: SimpleNamespace(sampler="teacher"),
    )
    config = GKD.Config(teacher=ModelRef(model="t"), student_share=share, others=others)  # type: ignore[arg-type]
    made = _Mixture(stage, config)

    def written(who: Any, batch: Sequence[_MixedPrompt], *stream: str) -> Any:
        for item in batch:
            asked.append(f"{who} {item.prompt[0]}")
            yield item, Attempt(item.prompt, [7, 8], logprobs=(-0.5, -0.5))

    vars(made).update(written=written, snapshot=lambda client: "student")
    return made, asked


class Engine:
    """Takes what is submitted."""

    def forward_backward_custom(self, data: Sequence[Any], loss: Any) -> Any:
        self.data = data
        shapes = [one.loss_fn_inputs["target_tokens"].shape for one in data]
        self.loss = loss(data, [torch.full(shape, -2.0, requires_grad=True) for shape in shapes])[0]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> None:
    def likeliest(found: Any, count: int) -> Likeliest:
        return Likeliest(np.full((count, 2), 3), np.full((count, 2), -1.0))

    monkeypatch.setattr(teachers, "ask_top_k", lambda *asked: None)
    monkeypatch.setattr(teachers, "likeliest", likeliest)


def prompts(count: int) -> list[_MixedPrompt]:
    given = [Attempt([n, 9], [1, 2, 3], given=True) for n in range(count)]
    return [_MixedPrompt([n, 9], given[n]) for n in range(count)]


@pytest.mark.usefixtures("read")
def test_a_share_of_the_prompts_is_answered_by_the_student() -> None:
    made, asked = mixture(0.3)
    engine: Any = Engine()
    batch = prompts(200)
    made.submit(engine, batch)
    assert 40 <= len(asked) <= 80
    assert all(who.startswith("student") for who in asked)
    assert len(engine.data) == 200
    usage = made.usage(batch)
    assert usage.sample == 2 * len(asked)
    assert usage.train == 200 * 2 + usage.sample + 3 * (200 - len(asked))
    again, same = mixture(0.3)
    again.submit(engine, batch)
    assert same == asked
    again.submit(engine, batch)
    assert same[len(asked) :] != asked


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize(
    ("share", "others", "writers"),
    [
        (1.0, "data", {"student"}),
        (0.0, "data", set()),
        (0.0, "teacher", {"teacher"}),
        (0.5, "teacher", {"student", "teacher"}),
    ],
)
def test_whose_replies_the_others_are(share: float, others: str, writers: set[str]) -> None:
    made, asked = mixture(share, others)
    batch = prompts(12)
    if others == "teacher":
        batch = [_MixedPrompt(item.prompt) for item in batch]
    engine: Any = Engine()
    made.submit(engine, batch)
    assert {who.split()[0] for who in asked} == writers
    assert len(engine.data) == 12
    assert torch.isfinite(engine.loss)

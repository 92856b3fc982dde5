"""Surrogate losses: our formulas against the engine's, and what it takes to add one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine.train import losses as engine_losses
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.policy_loss import (
    SURROGATES,
    PolicyConfig,
    forward_backward,
)
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.conftest import ROOT

GENERATOR = torch.Generator().manual_seed(5)
LOGQ = -torch.rand(12, generator=GENERATOR, dtype=torch.float64) * 3
GAP = torch.randn(12, generator=GENERATOR, dtype=torch.float64) * 0.4


def by_formula(
    name: str, gap: torch.Tensor, A: float, config: PolicyConfig | None = None
) -> tuple[float, torch.Tensor]:
    logp = (LOGQ + gap).requires_grad_()
    config = config or PolicyConfig(loss=name)
    loss = config.surrogate.formula(logp, LOGQ, A, config).sum()
    loss.backward()
    assert logp.grad is not None
    return float(loss.detach()), logp.grad


def by_engine(name: str, gap: torch.Tensor, A: float) -> tuple[float, torch.Tensor]:
    logp = (LOGQ + gap)[:, None].requires_grad_()
    inputs = {"logprobs": LOGQ[:, None], "advantages": torch.full((12, 1), A, dtype=torch.float64)}
    if name == "gspo":
        inputs["sequence_ratio_mask"] = torch.ones(12, 1).double()
        inputs["datum"] = torch.zeros(12, 1, dtype=torch.int64)
    low, high = PolicyConfig(loss=name).clip
    clip = {"clip_low_threshold": low, "clip_high_threshold": high}
    settings = engine_losses.settings(name, clip if SURROGATES[name].clip else {})
    loss = engine_losses.find(name).fn(logp, inputs, settings)
    loss.backward()
    assert logp.grad is not None
    return float(loss.detach()), logp.grad[:, 0]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("A", [0.7, -1.3])
@pytest.mark.parametrize("name", [name for name, s in SURROGATES.items() if s.engine])
def test_a_formula_is_what_the_engine_computes(name: str, A: float, spread: float) -> None:
    ours, slope = by_formula(name, spread * GAP, A)
    theirs, gradient = by_engine(name, spread * GAP, A)
    assert ours == pytest.approx(theirs, rel=1e-9)
    torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12)


def test_clipping_acts_where_it_should() -> None:
    """ppo's gradient is zero where the ratio is clipped; cispo's never is."""
    outside = torch.tensor([0.5] * 12).double()
    assert not by_formula("ppo", outside, 1.0)[1].any()
    assert by_formula("ppo", outside, -1.0)[1].all()
    assert by_formula("cispo", outside * 4, 1.0)[1].all()


def test_dro_against_its_formula() -> None:
    config = PolicyConfig(loss="dro", dro_beta=0.3)
    logp = LOGQ + GAP
    found = config.surrogate.formula(logp, LOGQ, 0.7, config)
    for t in range(12):
        expected = -(0.7 * float(logp[t]) - 0.15 * (float(logp[t]) - float(LOGQ[t])) ** 2)
        assert float(found[t]) == pytest.approx(expected)
    assert config.surrogate.need == "custom_loss"


@pytest.mark.parametrize("A", [0.7, -1.3])
def test_sapo_against_its_formula(A: float) -> None:
    config = PolicyConfig(loss="sapo", sapo_positive=0.8, sapo_negative=1.5)
    tau = 0.8 if A > 0 else 1.5
    value, slope = by_formula("sapo", GAP, A, config)
    rho = np.exp(GAP.numpy())
    gate = 1 / (1 + np.exp(-tau * (rho - 1)))
    assert value == pytest.approx(-(4 / tau * gate * A).sum())
    np.testing.assert_allclose(slope, -4 * gate * (1 - gate) * rho * A, rtol=1e-12)
    # Where the policy is the one that sampled, the gradient is that of -rho A.
    on_policy = by_formula("sapo", 0 * GAP, A, config)[1]
    torch.testing.assert_close(on_policy, by_formula("importance_sampling", 0 * GAP, A)[1])


def test_a_bad_reply_that_became_likelier_does_not_outweigh_all() -> None:
    gap = torch.tensor([-1.0, 0.0, 0.1, 1.0, 3.0] + [0.0] * 7).double()
    config = PolicyConfig(delta=2.0)
    value, slope = by_formula("ppo", gap, -1.0, config)
    terms = [0.8, 1.0, np.exp(0.1), 2.0, 2.0] + [1.0] * 7
    assert value == pytest.approx(sum(terms))
    assert slope.numpy() == pytest.approx([0.0, 1.0, np.exp(0.1), 0.0, 0.0] + [1.0] * 7)
    assert by_formula("ppo", gap, 1.0, config)[0] == by_formula("ppo", gap, 1.0)[0]
    assert config.loss_need == "custom_loss"
    for wrong in ({"delta": 1.1}, {"delta": 3.0, "loss": "cispo"}):
        with pytest.raises(ValueError, match="delta"):
            PolicyConfig(**wrong)


@pytest.mark.parametrize(
    ("A", "off", "kept"), [(-1.0, 0.6, False), (-1.0, 0.4, True), (1.0, 9.0, True)]
)
def test_replies_that_are_bad_and_long_gone_are_left_out(A: float, off: float, kept: bool) -> None:
    config = PolicyConfig(off_policy_mask=0.5)
    logq = [-1.0] * 4
    assert config.left_out([A] * 4, [-1.0 - off] * 4, logq) == [not kept] * 4
    assert config.loss_need == "custom_loss"


@pytest.mark.parametrize("A", [0.7, -1.3])
def test_gmpo_against_its_formula(A: float) -> None:
    value, slope = by_formula("gmpo", 2 * GAP, A)
    gap = 2 * GAP.numpy()
    signed = np.sign(A) * gap
    kept = signed <= 0.4
    geometric = np.prod(np.exp(np.sign(A) * np.minimum(signed, 0.4))) ** (1 / 12)
    assert 0 < kept.sum() < 12
    assert value == pytest.approx(-12 * geometric * A)
    np.testing.assert_allclose(slope, np.where(kept, -geometric * A, 0.0), rtol=1e-12)


@pytest.mark.parametrize("A", [0.7, -1.3])
def test_vespo_against_its_formula(A: float) -> None:
    k, pull = (2, 3) if A >= 0 else (3, 2)
    for scale in (0.0, 0.3, 40.0):
        value, slope = by_formula("vespo", scale * GAP, A)
        w = np.exp(np.clip((scale * GAP).clamp(-20, 20).sum(), np.log(1e-8), 20))
        phi = w**k * np.exp(pull * (1 - w))
        assert value == pytest.approx(-float((phi * A * (LOGQ + scale * GAP)).sum()))
        np.testing.assert_allclose(slope, np.full(12, -phi * A), rtol=1e-9)


def test_what_tokens_weigh_by_the_source_of_a_loss() -> None:
    group = Group(
        [
            Rollout([Segment.reply([9], [1] * n, [-1.0] * n)], Sample((), "", None), [], reward=1.0)
            for n in (2, 6)
        ]
    )
    sequences = [1 / 4, 1 / 12]
    for loss, expected in (("gspo", sequences), ("gmpo", sequences), ("vespo", [1 / 8] * 2)):
        assert PolicyConfig(loss=loss).token_weights(group, 10) == pytest.approx(expected)
    luspo = PolicyConfig(loss="gspo", length_norm="constant")
    assert luspo.token_weights(group, 10) == pytest.approx([1 / 20] * 2)


ADDED = {
    "advantages.py": '''
@estimator(length_norm="token")
def best_only(r: Rewards) -> list[float]:
    """1 for the best of the group, A paper of tomorrow.

    Somebody 2027, arXiv 2701.00000, equation 1.
    """
    return [float(r_i == max(r)) for r_i in r]
''',
    "policy_loss.py": '''
@surrogate()
def linear(logp: Tensor, logq: Tensor, A: float, config: PolicyConfig) -> Tensor:
    """-A log p, no ratio at all."""
    return -A * logp
''',
}
PROGRAM = """
import json
from posttrain_recipes import registry
from posttrain_recipes.cli.plugins import option_lines
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.rollout import Group, Rollout
entry = registry.load().get("method", "grpo")
method = GRPO(GRPO.Config(advantage="best_only", loss="linear"))
group = Group([Rollout([], Sample((), "", None), [], reward=r) for r in (1.0, 0.0)])
own = recipe_schema(registry.load())["$defs"]["method.grpo"]["properties"]
print(json.dumps({
    "schema": [own["advantage"]["enum"], own["loss"]["enum"]],
    "explain": "\\n".join(option_lines(entry, 2000)),
    "advantages": method.config.estimate(group, []),
    "needs": list(method.needs),
    "norm": method.config.advantage,
}))
"""


def test_one_function_makes_an_option_everywhere(tmp_path: Path) -> None:
    """Added to the sources of a copy, nothing else touched."""
    package = tmp_path / "posttrain_recipes"
    skip = shutil.ignore_patterns("models", "__pycache__")
    shutil.copytree(ROOT / "posttrain_recipes", package, ignore=skip)
    (package / "models").mkdir()
    shutil.copy(ROOT / "posttrain_recipes/models/__init__.py", package / "models")
    for name, code in ADDED.items():
        file = package / "training" / "rl" / name
        before, mark, after = file.read_text().partition("\nif TYPE_CHECKING:\n    Estimator")
        if not mark:
            before, mark, after = before.partition("\nif TYPE_CHECKING:\n    PolicyLoss")
        assert mark
        file.write_text(before + code + "\n" + mark + after)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ["best_only" in found["schema"][0], "linear" in found["schema"][1]] == [True, True]
    assert "best_only: 1 for the best of the group, A paper of tomorrow" in found["explain"]
    assert "linear: -A log p, no ratio at all" in found["explain"]
    assert found["advantages"] == [1.0, 0.0]
    assert found["needs"][0] == "custom_loss"


@pytest.mark.parametrize(("name", "kept"), [("dro", [0, 1, 2]), ("ppo", [0, 2])])
def test_a_loss_that_pulls_learns_of_advantages_of_zero_too(name: str, kept: list[int]) -> None:
    """Off policy the pull towards q has a gradient where A = 0."""
    asked: list[list[Any]] = []
    client = SimpleNamespace(
        forward_backward=lambda data, loss, settings: asked.append(data),
        forward_backward_custom=lambda data, loss: asked.append(data),
    )
    rollouts = [
        Rollout([Segment.reply([9], [place], [-0.5])], Sample((), "", None), [], reward=reward)
        for place, reward in enumerate((1.0, 0.5, 0.0, None))
    ]
    masked = Rollout([Segment.reply([9], [7], [-0.5])], Sample((), "", None), [], reward=2.0)
    masked.masked = True
    group = Group([*rollouts, masked])
    group.weigh([0.5, 0.0, -0.5, 1.0], [1.0] * 4, 1)
    [(items, _)] = forward_backward(client, [group], PolicyConfig(loss=name))  # type: ignore[arg-type]
    assert [item.segment.tokens[-1] for item in items] == kept
    assert len(asked[0]) == len(kept)


@pytest.mark.parametrize(
    ("loss", "option"),
    [("ppo", "dro_beta"), ("dro", "sapo_positive"), ("ppo", "sapo_negative"), ("gmpo", "delta")],
)
def test_an_option_of_another_loss_is_refused(loss: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} means nothing to loss '{loss}'"):
        PolicyConfig.model_validate({"loss": loss, option: 2.5})

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

import pytest
import torch

from posttrain_recipes.engine.train import losses as engine_losses
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.policy_loss import SURROGATES, PolicyConfig, forward_backward
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.conftest import ROOT

GENERATOR = torch.Generator().manual_seed(5)
LOGQ = -torch.rand(12, generator=GENERATOR, dtype=torch.float64) * 3
GAP = torch.randn(12, generator=GENERATOR, dtype=torch.float64) * 0.4


def by_formula(name: str, gap: torch.Tensor, A: float) -> tuple[float, torch.Tensor]:
    logp = (LOGQ + gap).requires_grad_()
    config = PolicyConfig(loss=name)
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
entry = registry.load().get("method", "grpo")
method = GRPO(GRPO.Config(advantage="best_only", loss="linear"))
own = recipe_schema(registry.load())["$defs"]["method.grpo"]["properties"]
print(json.dumps({
    "schema": [own["advantage"]["enum"], own["loss"]["enum"]],
    "explain": "\\n".join(option_lines(entry, 2000)),
    "advantages": method.config.estimator([1.0, 0.0], []),
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

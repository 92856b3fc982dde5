"""What divergence from a reference costs: by its formula, at the first step and later, and nowhere
else. And groups at their edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import ModelRef, PluginConfig, Reward, Sample
from posttrain_recipes.training.rl import divergence
from posttrain_recipes.training.rl.policy_loss import PolicyConfig, forward_backward
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.rollout_engine import Engine, Parity, Same, done, run, weigh

Q = [[-0.7, -0.2, -1.1], [-0.4], [-2.0, -0.1], [-0.3, -0.9, -0.5, -1.3]]
REF = [[-0.9, -0.1, -0.6], [-1.4], [-1.0, -0.3], [-0.3, -0.2, -0.8, -2.3]]
REWARDS = [1.0, 0.0, 0.25, 0.0]


def group(rewards: Sequence[float] = REWARDS, reference: bool = True) -> Group:
    """Four replies of 3, 1, 2 and 4 tokens to a prompt of two."""
    rollouts = []
    for reward, q, ref in zip(rewards, Q, REF, strict=True):
        segment = Segment.reply([1, 2], range(3, 3 + len(q)), q)
        one = Rollout([segment], Sample((), "", None), [], reward=reward)
        one.reference = [ref] if reference else []
        rollouts.append(one)
    return Group(rollouts)


class Client:
    """Takes what is submitted; a loss of ours is tried at `logprobs`."""

    def __init__(self) -> None:
        self.data: list[Any] = []
        self.loss: Any = None

    def forward_backward(self, data: list[Any], loss: str, settings: Any) -> Future[Any]:
        self.data, self.loss = data, loss
        return done(None)

    def forward_backward_custom(self, data: list[Any], loss: Any) -> Future[Any]:
        self.data, self.loss = data, loss
        return done(None)


def submitted(config: PolicyConfig, *groups: Group) -> Client:
    client = Client()
    weigh(config, list(groups), len(groups), max_tokens=4)
    forward_backward(client, groups, config)  # type: ignore[arg-type]
    return client


def advantages(client: Client) -> list[list[float]]:
    """Those of the policy's own tokens, as they were submitted."""
    return [d.loss_fn_inputs["advantages"].tolist()[1:] for d in client.data]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("advantage", ["group_norm", "group_mean", "rloo", "dr_grpo"])
def test_the_cost_stands_beside_the_advantage(estimator: Any, advantage: str) -> None:
    """A_it = A_i - beta k_it, A_i of the rewards alone, each times the token's weight."""
    beta = 0.3
    options: Any = {"advantage": advantage, "loss": "importance_sampling"}
    free = advantages(submitted(PolicyConfig(**options), group()))
    config = PolicyConfig(**options, kl_beta=beta, kl_estimator=estimator)
    costly = group()
    found = advantages(submitted(config, costly))
    for row, (q, ref) in enumerate(zip(Q, REF, strict=True)):
        for t in range(len(q)):
            gap = ref[t] - q[t]
            cost = -gap if estimator == "k1" else math.exp(gap) - 1 - gap
            weight = costly.rollouts[row].weight
            assert found[row][t] == pytest.approx(free[row][t] - beta * cost * weight, abs=1e-7)


def test_its_strength_depends_on_neither_the_rewards_spread_nor_their_level() -> None:
    config = PolicyConfig(advantage="group_norm", loss="importance_sampling", kl_beta=0.3)
    one = advantages(submitted(config, group()))
    small = advantages(submitted(config, group([r / 1000 + 5 for r in REWARDS])))
    np.testing.assert_allclose(np.concatenate(small), np.concatenate(one), atol=1e-3)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "gspo", "dro"])
def test_the_cost_in_the_loss(loss: str) -> None:
    """sum_i w_i sum_t surrogate + beta (p_ref/p - 1 - log p_ref/p): value and gradient."""
    config = PolicyConfig(advantage="group_norm", loss=loss, kl_beta=0.3, kl_in="loss")
    assert config.loss_need == "custom_loss"
    costly = group()
    client = submitted(config, costly)
    free = submitted(PolicyConfig(advantage="group_norm", loss=loss), group())
    shift = torch.tensor([0.05, -0.1, 0.02, 0.2], dtype=torch.float64)
    p = [
        torch.cat([torch.zeros(1), torch.tensor(q) + shift[: len(q)]]).double().requires_grad_()
        for q in Q
    ]
    value, _ = client.loss(client.data, p)
    value.backward()
    plain = PolicyConfig(advantage="group_norm", loss=loss)
    by_hand = 0.0
    for row, q in enumerate(Q):
        w = costly.rollouts[row].weight
        own = p[row].detach()[1:].clone().requires_grad_()
        terms = plain.surrogate.formula(
            own, torch.tensor(q), costly.rollouts[row].advantage, plain
        ).sum()
        terms.backward()
        for t in range(len(q)):
            gap = REF[row][t] - float(own[t])
            by_hand += w * 0.3 * (math.exp(gap) - 1 - gap)
            slope = w * (float(own.grad[t]) + 0.3 * (1 - math.exp(gap)))
            assert float(p[row].grad[t + 1]) == pytest.approx(slope, abs=1e-6)
        by_hand += w * float(terms)
    assert float(value) == pytest.approx(by_hand, abs=1e-6)
    assert callable(client.loss)
    assert free.loss == loss or callable(free.loss)


def test_estimators_are_right_on_average() -> None:
    p, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = float((p * np.log(p / ref)).sum())
    for estimate in (divergence.k1, divergence.k3):
        mean = p @ estimate(np.log(p).tolist(), np.log(ref).tolist())
        assert mean == pytest.approx(exact)
    assert all(map(math.isfinite, divergence.k3([-800.0], [-1.0])))


def test_k1_has_no_place_in_the_loss() -> None:
    with pytest.raises(ValidationError, match="the estimator k3"):
        PolicyConfig(kl_beta=0.1, kl_in="loss", kl_estimator="k1")


# --- groups whose rewards are all the same -------------------------------------------------------


@pytest.mark.parametrize("kl_in", ["advantage", "loss"])
@pytest.mark.parametrize("advantage", ["group_norm", "group_mean", "rloo", "reinforce_pp"])
def test_equal_rewards_move_nothing_whatever_divergence_costs(advantage: str, kl_in: Any) -> None:
    """At the first step and at later ones, where the policy has left the reference."""
    engine = Engine()
    options = {"advantage": advantage, "kl_beta": 0.5, "kl_in": kl_in, "epochs": 2}
    run(engine, rewards=[Same(PluginConfig())], **options)
    assert not any(engine.passes), "nothing is trained on"
    assert [m["groups/zero_variance_share"] for m, _ in engine.log] == [1.0] * len(engine.log)
    assert engine.log[0][0]["policy/kl_reference_per_token"] == pytest.approx(1.0)


def test_dynamic_sampling_looks_at_the_rewards() -> None:
    engine = Engine()
    options = {"zero_variance_groups": "replace", "max_replacements": 2, "kl_beta": 0.5}
    run(engine, rewards=[Same(PluginConfig())], max_steps=1, **options)
    assert engine.log[0][0]["groups/replaced"] == 8


def test_a_reply_as_good_as_the_mean_is_held_to_the_reference_too() -> None:
    config = PolicyConfig(advantage="group_mean", loss="importance_sampling", kl_beta=0.3)
    rewards = [1.0, 0.5, 0.0, 0.5]
    assert len(submitted(config, group(rewards)).data) == 4
    assert len(submitted(config.model_copy(update={"kl_beta": 0.0}), group(rewards)).data) == 2


def test_the_reward_that_is_logged_is_the_tasks() -> None:
    engine = Engine()
    run(engine, max_steps=1, kl_beta=0.1, reference=ModelRef(stage="base"))
    [(metrics, _)] = engine.log
    assert metrics["policy/kl_reference_per_token"] == pytest.approx(1.0)
    assert metrics["reward/mean"] == metrics["reward/parts/parity"]


# --- edges ---------------------------------------------------------------------------------------


def replies(lengths: Sequence[int], rewards: Sequence[float | None], **fields: Any) -> Group:
    rollouts = []
    for length, reward in zip(lengths, rewards, strict=True):
        segment = Segment.reply([1, 2], [3] * length, [-0.5] * length)
        rollouts.append(Rollout([segment], Sample((), "", None), [], reward=reward, **fields))
    return Group(rollouts)


@pytest.mark.parametrize("length_norm", ["sequence", "token", "constant"])
@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "gspo", "dro"])
@pytest.mark.parametrize(
    ("lengths", "rewards", "learned"),
    [
        ((1, 1), (1.0, 0.0), 2),  # a group of two, of one token each
        ((0, 2), (1.0, 0.0), 1),  # an empty reply has no token to learn
        ((0, 0), (1.0, 0.0), 0),
        ((2, 3), (1.0, None), 0),  # one is left: there is nothing to compare it with
        ((2, 3), (None, None), 0),
    ],
)
def test_small_groups(
    lengths: Sequence[int], rewards: Any, learned: int, loss: str, length_norm: Any
) -> None:
    if loss == "dro" and rewards[1] is None:
        learned = sum(r is not None for r in rewards)  # its pull needs no advantage
    config = PolicyConfig(loss=loss, length_norm=length_norm)
    one = replies(lengths, rewards)
    client = submitted(config, one)
    assert len(client.data) == learned
    assert all(math.isfinite(r.advantage) and math.isfinite(r.weight) for r in one.rollouts)
    if callable(client.loss) and learned:
        p = [torch.full((d.model_input.length,), -0.4, requires_grad=True) for d in client.data]
        value, _ = client.loss(client.data, p)
        value.backward()
        assert math.isfinite(float(value))
        assert all(torch.isfinite(leaf.grad).all() for leaf in p)


def test_a_group_that_is_masked_whole_teaches_nothing() -> None:
    for loss in ("ppo", "dro"):
        one = replies((2, 3), (1.0, 0.0), masked=True)
        assert not submitted(PolicyConfig(loss=loss, kl_beta=0.1), one).data


def test_replies_that_are_all_cut_are_learned_or_masked_as_the_option_says() -> None:
    class First(Parity):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [float(i % 2) for i, _ in enumerate(samples)]

    def passes(overlong: str) -> Engine:
        engine = Engine(cut=True)
        options = {"max_steps": 2, "overlong": overlong}
        run(engine, rewards=[First(PluginConfig())], **options)
        return engine

    assert any(passes("keep").passes)
    masked = passes("mask")
    assert not any(masked.passes)
    assert masked.version == 0, "Adam takes no step without a gradient"
    assert masked.log[0][0]["completions/clipped_ratio"] == 1.0


def test_a_group_of_one_needs_a_batch_to_be_compared_with() -> None:
    with pytest.raises(ValidationError, match="nothing to compare a reply with"):
        GRPO.Config(group_size=1)
    engine = Engine()
    run(engine, group_size=1, advantage="reinforce_pp", max_steps=1, batch_size=10)
    assert any(engine.passes)
    assert [ask.count for ask in engine.asked] == [1] * 10


def test_a_reward_of_all_none_is_told() -> None:
    class Silent(Reward):
        name = "silent"

        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [None] * len(samples)

    with pytest.raises(Exception, match="no reply of a whole batch"):
        run(Engine(), rewards=[Silent(PluginConfig())], max_steps=1)


# --- temperature ---------------------------------------------------------------------------------


def test_another_temperature_needs_what_was_sampled_from() -> None:
    name = "sample:tempered_logprobs"
    assert name not in GRPO(GRPO.Config()).needs
    assert name in GRPO(GRPO.Config(temperature=0.5)).needs


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_with_it_the_gradient_is_that_of_the_policy_that_is_trained(temperature: float) -> None:
    """Over all replies of one token, weighted by how often they are drawn: exactly the gradient of
    the expected reward. With log-probabilities of temperature 1 for q it points elsewhere."""
    logits = torch.tensor([0.3, -1.2, 2.0, 0.9], dtype=torch.float64)
    rewards = torch.tensor([0.0, 3.0, 1.0, -1.0], dtype=torch.float64)
    drawn = torch.log_softmax(logits / temperature, 0)
    config = PolicyConfig(loss="importance_sampling")

    def gradient(logq: torch.Tensor) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        logp = torch.log_softmax(leaf, 0)
        losses = config.surrogate.formula(logp, logq, rewards, config)
        (drawn.exp() * losses).sum().backward()
        assert leaf.grad is not None
        return -leaf.grad

    leaf = logits.clone().requires_grad_()
    (torch.softmax(leaf, 0) * rewards).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(gradient(drawn), leaf.grad)
    untempered = gradient(torch.log_softmax(logits, 0))
    assert torch.nn.functional.cosine_similarity(untempered, leaf.grad, dim=0) < 0.98

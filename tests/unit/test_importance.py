"""What a token weighs where another policy wrote it, and where the policy is uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl import entropy, importance
from posttrain_recipes.training.rl.policy_gradient import drift
from posttrain_recipes.training.rl.policy_loss import PolicyConfig, forward_backward
from posttrain_recipes.training.rl.rollout import Group, Rollout, RolloutSegment, Segment
from tests.rollout_engine import Engine, done, run, trained

RNG = np.random.default_rng(11)
LENGTHS = (3, 5, 2)
SAMPLED = [-RNG.random(n) * 2 for n in LENGTHS]
OLD = [q + 0.8 * RNG.normal(size=n) for q, n in zip(SAMPLED, LENGTHS, strict=True)]
NEW = [p + 0.3 * RNG.normal(size=n) for p, n in zip(OLD, LENGTHS, strict=True)]
A = (1.0, -0.4, -0.6)
WAYS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def replies() -> Group:
    made = []
    for row, (length, q) in enumerate(zip(LENGTHS, SAMPLED, strict=True)):
        segment = Segment.reply([90 + row, 8], [7] * length, q.tolist())
        made.append(Rollout([segment], Sample((), "", None), [], reward=A[row]))
    group = Group(made)
    group.weigh(A, [0.1, 0.2, 0.3], 1)
    return group


class Client:
    """Its policy is `values` by row, and it computes what it is asked for with torch."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self.leaves: list[torch.Tensor] = []
        self.loss = torch.zeros(())

    def forward(self, data: Sequence[Any], loss: str) -> Any:
        rows = [datum.model_input.to_ints()[0] - 90 for datum in data]
        outputs = [
            {"logprobs": SimpleNamespace(data=[-9.0, *self.values[row].tolist()])} for row in rows
        ]
        return done(SimpleNamespace(loss_fn_outputs=outputs))

    def forward_backward(self, data: Sequence[Any], loss: str, settings: Any) -> None:
        assert loss == "ppo"
        for datum in data:
            row = datum.model_input.to_ints()[0] - 90
            columns = {n: torch.tensor(v.data).double() for n, v in datum.loss_fn_inputs.items()}
            leaf = torch.tensor(self.values[row]).requires_grad_()
            rho = (leaf - columns["logprobs"][1:]).exp()
            a = columns["advantages"][1:]
            self.loss = self.loss - torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a).sum()
            self.leaves.append(leaf)
        self.loss.backward()

    def forward_backward_custom(self, data: Sequence[Any], loss: Any) -> None:
        rows = [datum.model_input.to_ints()[0] - 90 for datum in data]
        self.leaves = [torch.tensor(self.values[row]).requires_grad_() for row in rows]
        padded = [torch.cat([torch.zeros(1).double() - 9, leaf]) for leaf in self.leaves]
        self.loss, _ = loss(data, padded)
        self.loss.backward()


def by_hand(way: str, low: float, high: float, row: int) -> np.ndarray:
    """w of a reply's tokens."""
    gap = OLD[row] - SAMPLED[row]
    if way.startswith("sequence"):
        gap = np.full_like(gap, gap.sum())
    w = np.exp(gap)
    if way.endswith("truncate"):
        return np.clip(w, low, high)
    return np.where((w < low) | (w > high), 0.0, w)


def test_tokens_of_bad_steps_are_left_out_and_counted() -> None:
    """With rewarded steps alone an advantage is 0, and tokens are worth what they are credited."""
    config = PolicyConfig(off_policy_mask=0.09)
    group, client = replies(), Client([SAMPLED[0] - 0.1])
    one = group.rollouts[0]
    one.advantage, one.credits = 0.0, [[1.0, -1.0, -1.0]]
    group.rollouts = [one]
    forward_backward(client, [group], config)  # type: ignore[arg-type]
    assert (np.array(client.leaves[0].grad) != 0).tolist() == [True, False, False]
    outputs: list[Any] = [{"logprobs": SimpleNamespace(data=[-9.0, *client.values[0]])}]
    told = drift([RolloutSegment(one, 0)], outputs, config)
    assert told["policy/left_out_share"] == pytest.approx(2 / 3)
    assert "policy/left_out_share" not in drift([RolloutSegment(one, 0)], outputs, PolicyConfig())


@pytest.mark.parametrize("more", [{}, {"off_policy_mask": 1e-9}], ids=["engine's", "ours"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_and_the_ratio_to_the_policy_as_the_batch_began(
    way: str, more: dict[str, Any]
) -> None:
    """Value and gradient of sum_i w_i sum_t w_it (-min(rho A, clip(rho) A)), rho = p/p_old, whether
    the engine computes the loss or we do."""
    low, high = 0.6, 1.5
    config = PolicyConfig(importance_weights=way, importance_cap=high, importance_floor=low, **more)
    group, reader, client = replies(), Client(OLD), Client(NEW)
    importance.weigh(reader, group.rollouts, config, lambda future: future.result())  # type: ignore[arg-type]
    forward_backward(client, [group], config)  # type: ignore[arg-type]
    value, every = 0.0, np.concatenate([by_hand(way, low, high, row) for row in range(3)])
    assert len({0.0, low, high} & set(every.round(9))) > 0, "or nothing was bounded"
    for row, weight in enumerate((0.1, 0.2, 0.3)):
        rho, w = np.exp(NEW[row] - OLD[row]), by_hand(way, low, high, row)
        if more and A[row] < 0 and (SAMPLED[row] - NEW[row]).mean() > 1e-9:
            w = 0 * w
        terms = np.minimum(rho * A[row], np.clip(rho, 0.8, 1.2) * A[row])
        value -= weight * (w * terms).sum()
        flat = (rho * A[row] > terms) * (np.clip(rho, 0.8, 1.2) != rho)
        slope = -weight * w * rho * A[row] * ~flat
        np.testing.assert_allclose(client.leaves[row].grad, slope, rtol=1e-5, atol=1e-7)
    assert client.loss.item() == pytest.approx(value, rel=1e-5)


def test_what_is_told_of_them() -> None:
    config = PolicyConfig(importance_weights="token_truncate", importance_cap=1.5)
    group = replies()
    importance.weigh(Client(OLD), group.rollouts, config, lambda future: future.result())  # type: ignore[arg-type]
    told = importance.metrics(group.rollouts, config)
    ratios = np.exp(np.concatenate(OLD) - np.concatenate(SAMPLED))
    weights = np.minimum(ratios, 1.5)
    assert told == {
        "importance/ratio_mean": pytest.approx(ratios.mean()),
        "importance/ratio_max": pytest.approx(ratios.max()),
        "importance/bounded_share": pytest.approx((ratios > 1.5).mean()),
        "importance/effective_share": pytest.approx(
            weights.sum() ** 2 / (weights**2).sum() / len(weights)
        ),
    }
    assert importance.metrics(replies().rollouts, PolicyConfig()) == {}
    [(items, _)] = forward_backward(
        SimpleNamespace(forward_backward=lambda *a: None),
        [group],
        config,  # type: ignore[arg-type]
    )
    outputs = [{"logprobs": SimpleNamespace(data=[-9.0, *new.tolist()])} for new in NEW]
    moved = drift(items, outputs, config)  # type: ignore[arg-type]
    rho = np.exp(np.concatenate(NEW) - np.concatenate(OLD))
    assert moved["policy/ratio_max"] == pytest.approx(rho.max())
    stale = (np.concatenate(SAMPLED) - np.concatenate(NEW)).mean()
    assert moved["policy/kl_sampler"] == pytest.approx(stale)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"importance_cap": 2.0}, "importance_cap and importance_floor are of importance_weights"),
        ({"importance_weights": "token_mask", "importance_floor": 3.0}, "below importance_cap"),
        ({"importance_weights": "token_mask", "loss": "vespo"}, "'vespo' weighs by the ratio"),
        ({"pass_k": 2}, "pass_k means nothing to advantage 'group_norm'"),
        ({"advantage": "pass_at_k", "pass_k": 9}, "pass_k 9 needs as many replies"),
        ({"advantage": "gdpo", "overlong": "penalize"}, "'gdpo' could normalize"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GRPO.Config(**options)


# --- in the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2])
def test_the_policy_reads_each_batch_once_before_it_moves(updates: int) -> None:
    engine = Engine()
    weights = {"importance_weights": "token_truncate", "importance_cap": 0.95}
    run(engine, updates_per_batch=updates, max_staleness=1, epochs=2, max_steps=4, **weights)
    assert {version for version, _ in engine.read} == set(range(0, 4, updates))
    learned = sorted(ids for data in trained(engine) for ids, *_ in data)
    read = sorted(ids for _, part in engine.read for ids in part)
    assert all(ids in read for ids in learned)
    metrics = [metrics for metrics, _ in engine.log]
    ratios = [m["importance/ratio_max"] for m in metrics]
    # The samplers of this engine say -0.5 of every token, its policy 0.1 less with every step.
    began = [step // updates * updates for step in range(4)]
    assert ratios == pytest.approx([np.exp(-0.1 * version) for version in began])
    assert [m["importance/bounded_share"] for m in metrics] == [float(not v) for v in began]
    plain = Engine()
    run(plain, updates_per_batch=updates, max_staleness=1, epochs=2, max_steps=4)
    for one, other in zip(engine.passes, plain.passes, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            version = (-0.5 - min(ours.loss_fn_inputs["logprobs"].tolist())) / 0.1
            w = min(np.exp(-0.1 * version), 0.95)
            scaled = [w * a for a in theirs.loss_fn_inputs["advantages"].tolist()]
            assert ours.loss_fn_inputs["advantages"].tolist() == pytest.approx(scaled, abs=1e-6)


def test_a_stage_that_goes_on_reads_what_it_would_have_read() -> None:
    options = {"importance_weights": "sequence_mask", "max_staleness": 1, "epochs": 2}
    whole, first = Engine(), Engine()
    run(whole, save_every=1, **options)
    run(first, save_every=1, max_steps=2, **options)
    again = Engine(version=2)
    run(again, resume=first.kept[-1], save_every=1, **options)
    assert trained(whole)[-len(trained(again)) :] == trained(again)
    assert [read for read in whole.read if read[0] >= 2] == again.read


def test_the_greedy_reply_is_asked_counted_and_not_learned() -> None:
    engine = Engine()
    run(engine, advantage="remax", group_size=1, max_steps=2)
    assert sorted({ask.count for ask in engine.asked}) == [1]
    assert len(engine.asked) == 2 * 8
    learned = sum(len(data) for data in engine.passes)
    assert 0 < learned <= 8


# --- entropy -------------------------------------------------------------------------------------


def test_the_entropy_of_a_place() -> None:
    p = np.array([0.5, 0.2, 0.1])
    bound = -(p * np.log(p)).sum() - 0.2 * np.log(0.2)
    assert entropy.entropy(np.log(p).tolist()) == pytest.approx(bound)
    whole = RNG.dirichlet(np.ones(30))
    ordered = np.sort(whole)[::-1]
    exact = -(whole * np.log(whole)).sum()
    assert entropy.entropy(np.log(ordered).tolist()) == pytest.approx(exact)
    assert 0 < entropy.entropy(np.log(ordered[:20]).tolist()) < exact
    assert entropy.entropy([0.0, -np.inf]) == 0.0


def test_a_bonus_is_the_gradient_of_entropy() -> None:
    """Over all tokens of one place, sum_v p_v bonus_v grad log p_v = beta grad H."""
    logits = torch.tensor([1.0, -0.3, 0.2, 2.0]).double().requires_grad_()
    logp = logits.log_softmax(0)
    bonus = PolicyConfig(entropy_bonus=0.3).bonus(logp.detach().tolist(), 0.7)
    (logp.exp().detach() * torch.tensor(bonus).double() * logp).sum().backward(retain_graph=True)
    found = logits.grad.clone()  # type: ignore[union-attr]
    logits.grad = None
    (0.3 * -(logp.exp() * logp).sum()).backward()
    torch.testing.assert_close(found, logits.grad)
    group = replies()
    mean = -np.concatenate(SAMPLED).mean()
    assert [one.surprise for one in group.rollouts] == pytest.approx([mean] * 3)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_the_tokens_at_which_the_policy_was_uncertain(share: float) -> None:
    groups = [replies(), replies()]
    groups[1].rollouts[2].masked = True
    for group in groups:
        for one, length in zip(group.rollouts, LENGTHS, strict=True):
            one.entropies = [RNG.random(length).tolist()]
    entropy.keep_uncertain(groups, share)
    rows = [(one, one.entropies[0]) for g in groups for one in g.rollouts if not one.masked]
    every = np.concatenate([h for _, h in rows])
    border = np.quantile(every, 1 - share)
    for one, h in rows:
        assert one.factors == [(np.array(h) >= border).astype(float).tolist()]
    assert sum(sum(one.factors[0]) for one, _ in rows) >= max(1, share * (len(every) - 1))
    assert not groups[1].rollouts[2].factors


def test_a_stage_learns_of_them_alone() -> None:
    engine, plain = Engine(), Engine()
    run(engine, top_entropy=0.3, max_steps=1, epochs=1)
    run(plain, max_steps=1)
    kept = every = 0
    shown: list[tuple[int, bool]] = []
    for one, other in zip(sum(engine.passes, []), sum(plain.passes, []), strict=True):
        ours, theirs = (d.loss_fn_inputs["advantages"].tolist() for d in (one, other))
        tokens = one.loss_fn_inputs["target_tokens"].tolist()
        for token, a, b in zip(tokens, ours, theirs, strict=True):
            if b:
                shown.append((token, bool(a)))
                assert a in (0.0, pytest.approx(b))
        kept, every = kept + np.count_nonzero(ours), every + np.count_nonzero(theirs)
    # Of this engine's policy a large token is a certain one.
    assert max(t for t, k in shown if k) < min(t for t, k in shown if not k)
    assert 0 < kept < 0.5 * every

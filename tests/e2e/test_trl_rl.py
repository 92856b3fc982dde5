"""GRPO and RLOO agree with TRL's own code on the same rollouts, where TRL is installed.

TRL's trainers are asked for both of their halves, from rewards to advantages and from those to the
loss, on a stub that has the attributes that they read; ours is what `grpo` submits to the engine,
and the engine's loss of it. Compared are values, and gradients by the log-probability of every
token, in float64.

What differs by intent:

- TRL adds 1e-4 to a standard deviation that it divides by, ours is 1e-6 as in the authors' code;
  both take G - 1. Where losses are compared, both have TRL's.
- `length_norm: token` divides by the tokens of a group, as equation 8 of DAPO does; TRL's bnpo and
  dapo by those of a batch, in which groups of long replies weigh more. So TRL is given one group at
  a time.
- GRPO's divergence from the reference is taken off the reward here and added to the loss by TRL, so
  that only the estimate of it is compared; its RLOO takes it off the reward too.
- TRL's RLOO clips the ratio of whole replies and sums over their tokens; ours is of tokens, divided
  by `max_tokens`. They are one gradient, up to that constant, where the policy is the one that
  sampled.
- `scale_rewards: batch` takes a group's mean off and divides by the spread of the batch;
  `reinforce_pp` takes off the mean of the batch too, as its paper does.
- A reply without a reward is left out of the mean over a group; TRL counts it there as a zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain_recipes.engine.train import losses
from posttrain_recipes.plugin import Sample
from posttrain_recipes.training.rl import advantages, entropy, importance
from posttrain_recipes.training.rl.policy_gradient import drift
from posttrain_recipes.training.rl.policy_loss import PolicyConfig, forward_backward
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.rollout_engine import weigh
from tests.trl_trainer import Trainer

pytest.importorskip("trl", reason="TRL is not installed")

GROUPS, G, PROMPT, T = 3, 4, 2, 6
"""Groups, replies in each, tokens of a prompt, and of the longest reply."""
N = GROUPS * G
REWARDS: list[float | None] = [1, 0, 0.3, 0.6, 1, 1, 1, 1, 0, 0.7, 0, 0.2]
"""The second group teaches nothing."""
UNSCORED: list[float | None] = [1, 0, None, 0.6, 1, 1, 1, 1, None, 0.7, None, None]
"""In the last group a single reply has a reward."""
LENGTHS = [3, 6, 1, 4, 2, 5, 3, 3, 6, 2, 4, 6]
CUT = (3, 8)
"""Replies that end before they are done."""
EOS = 9
TRL_EPSILON = 1e-4


def numbers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p, log q of the policy that sampled, log p_ref: of every token of a reply (N, T)."""
    random = torch.Generator().manual_seed(7)
    p = -torch.rand(N, T, generator=random, dtype=torch.float64) * 3
    q, reference = (
        p + 0.4 * torch.randn(N, T, generator=random, dtype=torch.float64) for _ in range(2)
    )
    return p, q, reference


class RLTrainer(Trainer):
    """A GRPO or RLOO trainer whose policy wrote the replies `rows` and now finds them `p` likely.

    It returns `p` for the model and `reference` for `ref_model`.
    """

    args = SimpleNamespace(
        gradient_checkpointing_kwargs=None,
        per_device_train_batch_size=N,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=0.8,
        sapo_temperature_neg=1.5,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
    )
    environment_factories = environments = tools = None
    off_policy_mask_threshold = pad_to_multiple_of = None
    reward_clip_range = None
    use_vllm = mask_truncated_completions = _entropy_bonus_enabled = log_multimodal = False
    normalize_advantages = False
    num_iterations = current_gradient_accumulation_steps = 1
    top_entropy_quantile = 1.0
    importance_sampling_level = "token"
    multi_objective_aggregation = "sum_then_normalize"
    scale_rewards = "group"
    loss_type = "grpo"
    beta = 0.0
    epsilon_low = epsilon_high = 0.2
    max_completion_length = T
    num_generations = G
    eos_token_ids = (EOS,)
    _tokenizer = SimpleNamespace(pad_token_id=0)
    reward_weights = torch.ones(1, dtype=torch.float64)
    reward_func_names = ("rule",)
    ref_model = SimpleNamespace()

    reward_funcs: Sequence[str] = ("rule",)
    vllm_importance_sampling_correction = True
    vllm_importance_sampling_clip_min: float | None = None
    begun = sampled = entropies = form = None

    def __init__(
        self,
        p: torch.Tensor,
        rewards: Sequence[float | None],
        rows: Sequence[int] = range(N),
        reference: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        delta = options.pop("delta", None)
        super().__init__(**options)
        from trl import GRPOTrainer

        self.args = SimpleNamespace(**{**vars(self.args), "delta": delta})
        self.get_gamma_weights = GRPOTrainer.get_gamma_weights
        self.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
        self.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, self)
        self.p, self.rewards, self.rows, self.reference = p, rewards, rows, reference
        self._logs: dict[str, Any] = {"rewards": defaultdict(list), "extra": defaultdict(list)}
        self._logs |= {name: [] for name in ("prompt", "completion", "advantages")}
        self._pending_extra_logs: dict[str, Any] = {}
        self._pending_metrics: dict[str, Any] = {}

    def _generate(self, prompts: Sequence[str]) -> tuple[Any, ...]:
        replies = [[1] * (LENGTHS[i] - 1) + [1 if i in CUT else EOS] for i in self.rows]
        texts = [""] * len(self.rows)
        if type(self).__name__ == "RLOO":
            return [[1] * PROMPT for _ in self.rows], replies, texts
        told = self.sampled and [self.sampled[i][: LENGTHS[i]] for i in self.rows]
        return [[1] * PROMPT for _ in self.rows], replies, None, texts, told, {}, None, None

    def _calculate_rewards(self, *replies: Any) -> torch.Tensor:
        if self.form is not None:
            both = [self.rewards, self.form]
            return torch.tensor(both, dtype=torch.float64).T[list(self.rows)]
        found = [self.rewards[i] for i in self.rows]
        return torch.tensor(
            [[float("nan") if r is None else r] for r in found], dtype=torch.float64
        )

    def _get_per_token_logps_and_entropies(self, model: Any, *batch: Any, **more: Any) -> Any:
        values = self.reference if model is self.ref_model else self.p
        if model is self.model and self.begun is not None:
            values = self.begun
        assert values is not None
        longest = max(LENGTHS[i] for i in self.rows)
        values = values[list(self.rows), :longest]
        uncertain = torch.zeros_like(values)
        if self.entropies is not None:
            uncertain = self.entropies[list(self.rows), :longest]
        return values, uncertain, None


class RLOO(RLTrainer):
    """Its `_generate` returns less."""

    args = SimpleNamespace(gradient_checkpointing_kwargs=None, per_device_train_batch_size=N)


def scored(trainer: RLTrainer) -> dict[str, torch.Tensor]:
    """What TRL makes of the rewards."""
    from trl import GRPOTrainer, RLOOTrainer

    kind = RLOOTrainer if isinstance(trainer, RLOO) else GRPOTrainer
    inputs = [{"prompt": ""} for _ in trainer.rows]
    found: dict[str, torch.Tensor] = kind._generate_and_score_completions(trainer, inputs)
    return found


def theirs(
    p: torch.Tensor, q: torch.Tensor, rows: Sequence[int] = range(N), **options: Any
) -> tuple[torch.Tensor, torch.Tensor, RLTrainer]:
    """TRL's loss of the replies `rows`, its gradient by log p (N, T), and what was asked."""
    from trl import GRPOTrainer

    leaf = p.clone().requires_grad_()
    trainer = RLTrainer(leaf, REWARDS, rows, **options)
    inputs = scored(trainer)
    if trainer.begun is None:
        inputs["old_per_token_logps"] = q[list(rows), : inputs["completion_mask"].shape[1]]
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad, trainer


def by_group(p: torch.Tensor, q: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of TRL's loss of each group alone, with its gradient."""
    found = [theirs(p, q, range(i, i + G), **options) for i in range(0, N, G)]
    return sum(loss for loss, *_ in found) / GROUPS, sum(slope for _, slope, _ in found) / GROUPS


class Client:
    """An engine whose policy finds token t of reply i as likely as `p` (N, T) says."""

    def __init__(self, p: torch.Tensor) -> None:
        self.p = p.clone().requires_grad_()
        self.outputs: list[dict[str, Any]] = []

    def forward(self, data: Sequence[Any], loss: str) -> Any:
        rows = [datum.model_input.to_ints()[0] for datum in data]
        read = [[-1.0] * (PROMPT - 1) + self.p[row, : LENGTHS[row]].tolist() for row in rows]
        outputs = [{"logprobs": SimpleNamespace(data=values)} for values in read]
        return SimpleNamespace(loss_fn_outputs=outputs)

    def forward_backward(self, data: Sequence[Any], loss: str, settings: Any = None) -> Any:
        logps, columns, owner = [], defaultdict(list), []
        for number, datum in enumerate(data):
            row = datum.model_input.to_ints()[0]
            unknown = -torch.ones(PROMPT - 1, dtype=torch.float64)
            logps.append(torch.cat([unknown, self.p[row, : LENGTHS[row]]]))
            owner += [number] * len(logps[-1])
            for name, values in datum.loss_fn_inputs.items():
                columns[name] += values.data
            self.outputs.append({"logprobs": SimpleNamespace(data=logps[-1].tolist())})
        inputs = {
            name: torch.tensor(values, dtype=torch.float64)[:, None]
            for name, values in columns.items()
        } | {"datum": torch.tensor(owner)[:, None]}
        config = losses.settings(loss, settings or {})
        self.loss = losses.find(loss).fn(torch.cat(logps)[:, None], inputs, config)
        self.loss.backward()

    def forward_backward_custom(self, data: Sequence[Any], loss: Any) -> Any:
        logps = []
        for datum in data:
            row = datum.model_input.to_ints()[0]
            unknown = -torch.ones(PROMPT - 1, dtype=torch.float64)
            logps.append(torch.cat([unknown, self.p[row, : LENGTHS[row]]]))
            self.outputs.append({"logprobs": SimpleNamespace(data=logps[-1].tolist())})
        self.loss, _ = loss(data, logps)
        self.loss.backward()


def rollouts(q: torch.Tensor, rewards: Sequence[float | None], overlong: str) -> list[Group]:
    """The replies as the loop hands them on; a segment's first token tells which of them it is."""
    made = []
    for row, length in enumerate(LENGTHS):
        written = q[row, :length].tolist()
        segment = Segment.reply([row, *[1] * (PROMPT - 1)], [1] * length, written)
        rollout = Rollout([segment], Sample((), "", None, truncated=row in CUT), [])
        rollout.reward, rollout.masked = rewards[row], overlong == "mask" and row in CUT
        made.append(rollout)
    return [Group(made[i : i + G]) for i in range(0, N, G)]


def ours(
    p: torch.Tensor,
    q: torch.Tensor,
    overlong: str = "keep",
    begun: torch.Tensor | None = None,
    entropies: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Our loss, its gradient by log p (N, T), and what was logged of p against q."""
    config = PolicyConfig(**options)
    groups = rollouts(q, REWARDS, overlong)
    every = [rollout for group in groups for rollout in group.rollouts]
    if begun is not None:
        importance.weigh(Client(begun), every, config, lambda read: read)  # type: ignore[arg-type]
    if entropies is not None:
        for rollout, h, length in zip(every, entropies.tolist(), LENGTHS, strict=True):
            rollout.entropies = [h[:length]]
        entropy.keep_uncertain(groups, config.top_entropy or 0.0)
    weigh(config, groups, GROUPS, T)
    client = Client(p)
    [(items, _)] = forward_backward(client, groups, config)  # type: ignore[arg-type]
    assert client.p.grad is not None
    return client.loss.detach(), client.p.grad, drift(items, client.outputs, config)


def estimated(advantage: str, rewards: Sequence[float | None]) -> torch.Tensor:
    """What our estimator makes of the rewards (N,); 0 for a reply without one."""
    groups = rollouts(numbers()[1], rewards, "keep")
    weigh(PolicyConfig(advantage=advantage), groups, GROUPS, T)
    values = [rollout.advantage for group in groups for rollout in group.rollouts]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("rewards", [REWARDS, UNSCORED], ids=["all", "some without a reward"])
@pytest.mark.parametrize(
    ("advantage", "trainer", "options"),
    [
        ("group_norm", RLTrainer, {"scale_rewards": "group"}),
        ("group_mean", RLTrainer, {"scale_rewards": "none"}),
        ("dr_grpo", RLTrainer, {"scale_rewards": "none"}),
        ("rloo", RLOO, {}),
    ],
)
def test_advantages(
    advantage: str,
    trainer: type[RLTrainer],
    options: dict[str, Any],
    rewards: list[float | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = scored(trainer(numbers()[0], rewards, **options))["advantages"]
    assert found.abs().max() > 0.3
    # 1e-4 on a spread of 0.3 or more.
    torch.testing.assert_close(estimated(advantage, rewards), found, rtol=4e-4, atol=1e-12)
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    torch.testing.assert_close(estimated(advantage, rewards), found, rtol=1e-6, atol=1e-12)


def test_the_spread_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`scale_rewards: batch` lacks the term of `reinforce_pp` that tells groups from each other."""
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    found = scored(RLTrainer(numbers()[0], REWARDS, scale_rewards="batch"))["advantages"]
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    of_group = rewards.view(GROUPS, G).mean(1).repeat_interleave(G)
    between = (of_group - rewards.mean()) / (rewards.std() + TRL_EPSILON)
    assert between.abs().max() > 0.5
    torch.testing.assert_close(estimated("reinforce_pp", REWARDS), found + between)


@pytest.mark.parametrize("overlong", ["keep", "mask"])
@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {}),
        ({"clip_low": 0.9, "clip_high": 1.28}, {"epsilon_low": 0.1, "epsilon_high": 0.28}),
        ({"loss": "importance_sampling"}, {"epsilon_low": 1e9, "epsilon_high": 1e9}),
        (
            {"advantage": "dr_grpo"},
            {"scale_rewards": "none", "loss_type": "dr_grpo"},
        ),
        (
            {"loss": "gspo", "clip_low": 0.95, "clip_high": 1.05},
            {"importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.05},
        ),
        ({"length_norm": "token"}, {"loss_type": "bnpo"}),
        ({"length_norm": "token"}, {"loss_type": "dapo"}),
        (
            {"loss": "cispo", "clip_high": 1.1, "length_norm": "token"},
            {"loss_type": "cispo", "epsilon_high": 1.1},
        ),
        ({"loss": "sapo", "sapo_positive": 0.8, "sapo_negative": 1.5}, {"loss_type": "sapo"}),
        ({"loss": "vespo", "length_norm": "token"}, {"loss_type": "vespo"}),
        ({"delta": 1.4}, {"delta": 1.4}),
        ({"off_policy_mask": 0.05}, {"off_policy_mask_threshold": 0.05}),
    ],
    ids=[
        *("grpo", "clip-higher", "no clipping", "dr_grpo", "gspo", "bnpo", "dapo", "cispo"),
        *("sapo", "vespo", "delta", "off-policy mask"),
    ],
)
def test_surrogates(
    asked: dict[str, Any],
    options: dict[str, Any],
    overlong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    p, q, _ = numbers()
    options = options | {"mask_truncated_completions": overlong == "mask"}
    loss, slope, logged = ours(p, q, overlong, **asked)
    if asked.get("length_norm") == "token":
        found, gradient = by_group(p, q, **options)
    else:
        found, gradient, _ = theirs(p, q, **options)
    if PolicyConfig(**asked).surrogate.clip is not None:
        assert 0.2 < logged["policy/clip_share"] < 0.9, "or nothing is said of clipping"
    assert slope.abs().max() > 0.005
    torch.testing.assert_close(loss, found)
    torch.testing.assert_close(slope, gradient)


@pytest.mark.parametrize("mask", [None, 0.05])
@pytest.mark.parametrize("low", [None, 0.7])
@pytest.mark.parametrize(
    "way", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_importance_weights(
    way: str, low: float | None, mask: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`begun` is the policy as the batch began, `q` the one that sampled."""
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    p, q, begun = numbers()
    asked = {"importance_weights": way, "importance_cap": 1.3, "importance_floor": low or 0.0}
    loss, slope, _ = ours(p, q, begun=begun, off_policy_mask=mask, **asked)
    found, gradient, trainer = theirs(
        p,
        q,
        use_vllm=True,
        begun=begun,
        sampled=q.tolist(),
        vllm_importance_sampling_mode=way,
        vllm_importance_sampling_clip_max=1.3,
        vllm_importance_sampling_clip_min=low,
        off_policy_mask_threshold=mask,
    )
    assert slope.abs().max() > 0.005
    side, bound = ("max", 1.3) if way.endswith("truncate") else ("min", 0.0)
    told = trainer._metrics["train"][f"sampling/importance_sampling_ratio/{side}"]
    assert told == [pytest.approx(bound)], "or nothing was bounded"
    torch.testing.assert_close(loss, found, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_most_uncertain_tokens(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    p, q, _ = numbers()
    random = torch.Generator().manual_seed(2)
    uncertain = torch.rand(N, T, generator=random).double()  # TRL takes their quantile in float32
    loss, slope, _ = ours(p, q, entropies=uncertain, top_entropy=share)
    found, gradient, _ = theirs(p, q, entropies=uncertain, top_entropy_quantile=share)
    assert 0 < (slope != 0).sum() < 0.6 * sum(LENGTHS)
    torch.testing.assert_close(loss, found)
    torch.testing.assert_close(slope, gradient)


def test_rewards_that_are_normalized_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDPO is TRL's `multi_objective_aggregation: normalize_then_sum`."""
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    form = [0.0, 500.0, 500.0, 0.0, 0.0, 500.0, 0.0, 0.0, 500.0, 500.0, 500.0, 0.0]
    trainer = RLTrainer(
        numbers()[0],
        REWARDS,
        form=form,
        reward_funcs=("rule", "form"),
        reward_func_names=("rule", "form"),
        reward_weights=torch.tensor([2.0, 0.5], dtype=torch.float64),
        multi_objective_aggregation="normalize_then_sum",
    )
    found = scored(trainer)["advantages"]
    groups = rollouts(numbers()[1], REWARDS, "keep")
    every = [rollout for group in groups for rollout in group.rollouts]
    for group in groups:
        group.reward_weights = {"rule": 2.0, "form": 0.5}
    for rollout, right, formed in zip(every, REWARDS, form, strict=True):
        rollout.parts = {"rule": right or 0.0, "form": formed}
    weigh(PolicyConfig(advantage="gdpo"), groups, GROUPS, T)
    mine = torch.tensor([rollout.advantage for rollout in every], dtype=torch.float64)
    torch.testing.assert_close(mine, found)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_on_policy_they_are_all_the_policy_gradient(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one update a batch nothing is clipped, and TRL leaves the ratio out."""
    monkeypatch.setattr(advantages, "EPSILON", TRL_EPSILON)
    p, *_ = numbers()
    torch.testing.assert_close(ours(p, p, loss=loss)[1], theirs(p, p)[1])


def test_rloo() -> None:
    """TRL's gradient is `max_tokens` times ours, which Adam's step does not tell apart."""
    from trl import RLOOTrainer

    p, *_ = numbers()
    leaf = p.clone().requires_grad_()
    trainer = RLOO(leaf, REWARDS)
    RLOOTrainer._compute_loss(trainer, None, scored(trainer)).backward()
    slope = ours(p, p, advantage="rloo", loss="importance_sampling")[1]
    assert slope.abs().max() > 0.005
    torch.testing.assert_close(leaf.grad, T * slope)


def test_k3_is_the_divergence_that_grpo_logs() -> None:
    p, q, reference = numbers()
    *_, trainer = theirs(p, q, reference=reference, beta=0.1)
    rows = [(p[i, :n].tolist(), reference[i, :n].tolist()) for i, n in enumerate(LENGTHS)]
    estimate = sum(sum(advantages.k3(*row)) for row in rows) / sum(LENGTHS)
    assert estimate > 0.01
    assert trainer._metrics["train"]["kl"] == [pytest.approx(estimate)]

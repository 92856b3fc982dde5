"""The losses agree with TRL's own code on the same log-probabilities, where TRL is installed.

What differs by intent, and is therefore fed so that it does not show: the NLL term of orpo and cpo
is a mean over each chosen reply and then over pairs (TRL: over the tokens of the batch, for orpo
prompts too), equal where the chosen replies are equally long; kto's mismatched replies are of the
next other prompt in the data (TRL: of the one before in the batch), so both are given the same
numbers; TRL's loss of cpo and orpo without NLL is compared, since their NLL comes from logits.
TRL's `robust` divides by 1 - 2e as ours does; its `label_smoothing` for the sigmoid loss is gone
from the DPO trainer, so the conservative loss is compared with CPO's, which is the same formula.

Those of reinforcement learning are in `test_trl_rl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain_recipes.engine.train import losses as engine_losses
from posttrain_recipes.methods.sft import Likelihood
from posttrain_recipes.training.preference import losses
from posttrain_recipes.training.preference.completions import Logps
from posttrain_recipes.training.preference.pair_losses import (
    DIVERGENCES,
    PAIR_LOSSES,
    SMOOTHED,
    PairLossConfig,
    ScoredPairs,
)
from posttrain_recipes.training.text.examples import Example
from tests.engine_model import VOCAB, build
from tests.trl_trainer import Trainer

pytest.importorskip("trl", reason="TRL is not installed")

B, T = 16, 7
"""Pairs, and tokens of a reply with its prompt."""


def numbers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p of every token (2B, T - 1), which of them are the reply's, log p_ref of replies."""
    random = torch.Generator().manual_seed(3)
    mask = torch.zeros(2 * B, T, dtype=torch.long)
    for row in range(2 * B):
        mask[row, int(torch.randint(1, T - 1, (), generator=random)) :] = 1
    logps = -torch.rand(2 * B, T - 1, generator=random, dtype=torch.float64) * 3 * mask[:, 1:]
    reference = logps.sum(1) + torch.randn(2 * B, generator=random, dtype=torch.float64)
    return logps, mask, reference


def model(logps: torch.Tensor) -> Any:
    """A model that finds the tokens as likely as it is told."""

    def forward(**inputs: Any) -> Any:
        return SimpleNamespace(
            log_probs=logps,
            mean_logits=torch.zeros_like(logps),
            entropy=torch.zeros_like(logps),
            is_top1=torch.zeros_like(logps, dtype=torch.bool),
            logits=torch.zeros(*logps.shape, 2),
        )

    return forward


TRL_DIVERGENCES = {"js": "js_divergence", "alpha": "alpha_divergence"}


def trls_dpo(
    trainer: Trainer, logps: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """The loss that TRL's trainer finds of `numbers`, with its gradient taken."""
    from trl import DPOTrainer

    inputs = {
        "input_ids": torch.zeros(2 * B, T, dtype=torch.long),
        "attention_mask": torch.ones(2 * B, T, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:B],
        "ref_rejected_logps": reference[B:],
    }
    found: torch.Tensor = DPOTrainer._compute_loss(trainer, model(logps), inputs, False)
    found.backward()
    return found


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_dpo(name: str, divergence: str) -> None:
    logps, mask, reference = numbers()
    if divergence == "alpha":  # of which TRL knows no float64
        logps, reference = logps.float(), reference.float()
    theirs = logps.clone().requires_grad_()
    smoothing = 0.1 if name in SMOOTHED - {"sigmoid"} else 0.0
    trainer = Trainer(
        beta=0.3,
        loss_types=[name],
        label_smoothing=smoothing,
        f_divergence_type=TRL_DIVERGENCES.get(divergence, divergence),
        f_alpha_divergence_coef=0.5,
        args=SimpleNamespace(discopop_tau=0.05),
    )
    found = trls_dpo(trainer, theirs, mask, reference)

    ours = logps.clone().requires_grad_()
    of_reply = (ours * mask[:, 1:]).sum(1)
    sums, lengths = (torch.stack([x[:B], x[B:]], 1) for x in (of_reply, mask.sum(1)))
    pairs = Logps(sums, torch.stack([reference[:B], reference[B:]], 1), lengths)
    scored = ScoredPairs(pairs, DIVERGENCES[divergence](pairs.ratio, 0.5), 0.3, smoothing)
    loss = PAIR_LOSSES[name](scored).mean()
    loss.backward()
    torch.testing.assert_close(loss, found)
    torch.testing.assert_close(ours.grad * mask[:, 1:], theirs.grad * mask[:, 1:])
    logged = trainer._metrics["train"]
    rewards = 0.3 * (logps.sum(1) - reference)
    assert logged["rewards/margins"] == [
        pytest.approx((rewards[:B] - rewards[B:]).mean().item(), rel=1e-5)
    ]


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_length_desensitized_dpo(name: str) -> None:
    logps, mask, reference = numbers()
    theirs = logps.clone().requires_grad_()
    trainer = Trainer(beta=0.3, loss_types=[name], ld_alpha=0.3)
    found = trls_dpo(trainer, theirs, mask, reference)

    config = PairLossConfig(beta=0.3, loss=name, ld_alpha=0.3)
    ours = logps.clone().requires_grad_()
    lengths = torch.stack([mask[:B].sum(1), mask[B:].sum(1)], 1)
    of_policy = []
    for pair in range(B):
        counts = config.counts_by_token(lengths[pair].tolist())
        for row, counted in zip((pair, pair + B), counts, strict=True):
            own = ours[row][mask[row, 1:].bool()]
            of_policy.append((own * torch.tensor(counted)).sum())
    of_reference = torch.stack([reference[:B], reference[B:]], 1)
    values = config.of_pairs(Logps(torch.stack(of_policy).view(B, 2), of_reference, lengths))
    values.mean().backward()
    torch.testing.assert_close(values.mean(), found)
    torch.testing.assert_close(ours.grad, theirs.grad)


def two(mean: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logps, mask, _ = numbers()
    value = logps.sum(1) / mask.sum(1) if mean else logps.sum(1)
    return value[:B], value[B:]


def assert_same(ours: Any, theirs: Any, given: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Values and gradients of two losses of chosen and rejected."""
    slopes = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in given]
        values = loss(*leaves)
        values.sum().backward()
        slopes.append([values.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cpo_and_conservative_dpo(smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer = Trainer(beta=0.2, loss_type="sigmoid", label_smoothing=smoothing)
    assert_same(
        lambda c, r: losses.dpo_sigmoid(c - r, 0.2, smoothing),
        lambda c, r: CPOTrainer.cpo_loss(trainer, c, r)[0],
        two(mean=False),
    )
    if not smoothing:
        assert_same(
            lambda c, r: losses.cpo(c, r, 0.2),
            lambda c, r: CPOTrainer.cpo_loss(trainer, c, r)[0],
            two(mean=False),
        )


def test_simpo() -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer = Trainer(beta=2.0, loss_type="simpo", simpo_gamma=0.5)
    assert_same(
        lambda c, r: losses.simpo(c, r, 2.0, 0.5),
        lambda c, r: CPOTrainer.cpo_loss(trainer, c, r)[0],
        two(mean=True),
    )


def test_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    trainer = Trainer(beta=0.3)
    given = tuple(x.float() for x in two(mean=True))  # TRL computes it in float32
    assert_same(
        lambda c, r: losses.orpo(c, r, 0.3),
        lambda c, r: -c - ORPOTrainer.odds_ratio_loss(trainer, c, r)[0],
        given,  # type: ignore[arg-type]
    )
    log_odds = ORPOTrainer.odds_ratio_loss(trainer, *given)[4]
    torch.testing.assert_close(losses.log_odds_ratio(*given).mean(), log_odds)  # type: ignore[arg-type]


def test_kto() -> None:
    from trl import KTOTrainer

    logps, mask, reference = numbers()
    good = torch.rand(2 * B, generator=torch.Generator().manual_seed(5)) < 0.4
    theirs = logps.clone().requires_grad_()
    mismatch, mismatch_reference = logps.flip(0), reference.flip(0) - 1.0
    trainer = Trainer(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.3,
        undesirable_weight=0.6,
        calculate_KL=True,
        _compute_kl_logps=lambda model, batch: mismatch.sum(1),
    )
    inputs = {
        "input_ids": torch.zeros(2 * B, T, dtype=torch.long),
        "attention_mask": torch.ones(2 * B, T, dtype=torch.long),
        "completion_mask": mask,
        "label": good,
        "ref_logps": reference,
        "ref_KL_logps": mismatch_reference,
    }
    found = KTOTrainer._compute_loss(trainer, model(theirs), inputs, False)
    found.backward()

    ours = logps.clone().requires_grad_()
    z = (mismatch.sum(1) - mismatch_reference).mean().clamp(min=0)
    weights = torch.where(good, 1.3, 0.6)
    loss = (weights * losses.kto(ours.sum(1) - reference, good, z, 0.3)).mean()
    loss.backward()
    assert z > 0
    assert trainer._metrics["train"]["kl"] == [pytest.approx(z.item())]
    torch.testing.assert_close(loss, found, check_dtype=False)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("centering", [None, 0.05])
def test_reward_model(centering: float | None) -> None:
    from trl import RewardTrainer

    args = SimpleNamespace(center_rewards_coefficient=centering)
    trainer = Trainer(args=args)
    inputs = {"attention_mask": torch.ones(2 * B, T)}

    def theirs(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
        return RewardTrainer.compute_loss(trainer, Model(outputs), dict(inputs))

    def ours(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        values = losses.bradley_terry(chosen, rejected)
        return (values + (centering or 0.0) * (chosen + rejected) ** 2).mean()

    assert_same(ours, theirs, two(mean=False))


class Imitated:
    """An engine with this model, which is asked for a loss."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def forward_backward(self, data: Sequence[Any], loss: str) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        for datum in data:
            tokens = torch.tensor([datum.model_input.to_ints()])
            given = {k: torch.tensor(v.data)[:, None] for k, v in datum.loss_fn_inputs.items()}
            logits = self.model(input_ids=tokens).logits[0]
            logp = engine_losses.token_logprobs(logits, given["target_tokens"])
            self.loss = self.loss + engine_losses.find(loss).fn(logp, given, {})


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_sft(loss_type: Any, tmp_path: Path) -> None:
    """The mean over the tokens that are learned, of all of a batch, through a model."""
    from transformers import AutoModelForCausalLM

    folder = str(build(tmp_path))
    random = torch.Generator().manual_seed(2)
    examples = []
    for length, prompt in ((9, 4), (3, 1), (14, 2)):
        tokens = torch.randint(VOCAB, (length,), generator=random).tolist()
        weights = [0.0] * prompt + [1.0] * (length - prompt)
        weights[-2] = 0.0  # a turn in between that is not the assistant's
        examples.append(Example(tokens, weights))

    def ours(model: Any) -> torch.Tensor:
        client = Imitated(model)
        Likelihood(loss_type).submit(client, examples)  # type: ignore[arg-type]
        return client.loss

    slopes = []
    for loss_of in (ours, lambda model: sft(model, examples, loss_type)):
        model = AutoModelForCausalLM.from_pretrained(folder).double()
        loss = loss_of(model)
        loss.backward()
        slopes.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    if loss_type == "dft":  # ours is the engine's -sum p, whose gradient it is
        del slopes[0][0], slopes[1][0]
    assert slopes[0][0].abs().max() > 1e-3
    for found, wanted in zip(*slopes, strict=True):
        torch.testing.assert_close(found, wanted, check_dtype=False, rtol=1e-5, atol=3e-7)


def sft(model: Any, examples: Sequence[Example], loss_type: str) -> torch.Tensor:
    """TRL's loss of the examples, as its collator makes a batch of them."""
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    args = SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False)
    trainer = Trainer(args=args, model=model, compute_loss_func=None, label_smoother=None)
    rows = []
    for example in examples:
        pairs = zip(example.tokens, example.weights, strict=True)
        labels = [token if weight else -100 for token, weight in pairs]
        rows.append({"input_ids": example.tokens, "labels": labels})
    inputs = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    loss: torch.Tensor = SFTTrainer.compute_loss(trainer, model, inputs)
    return loss


class Model:
    """A model that answers what it is told, in training."""

    training = True

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs

    def __call__(self, **inputs: Any) -> Any:
        return self.outputs

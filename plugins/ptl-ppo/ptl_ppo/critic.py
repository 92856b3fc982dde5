"""The critic: a second LoRA on the policy's base model, whose value is a log-odds of two tokens.

Tinker's protocol trains adapters and has no scalar head to put on one. What it tells at every
position are log-probabilities of tokens that are asked for, so that

    V(s_t) = scale (log p(yes | s_t) - log p(no | s_t))

is a number that an adapter can learn, as reward models here do (`reward_model`). `yes` and `no` are
the two tokens by which an assistant's answers "yes" and "no" first differ, as the chat template
writes them: those of `posttrain_recipes.training.verdicts`. The policy's replies may have them in
them; the critic's adapter is never sampled from, so that nothing comes of it.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_recipes.plugin import Message, StageContext, UsageError, Waiter
from posttrain_recipes.training import Rollout, verdicts
from ptl_ppo.gae import gae

if TYPE_CHECKING:
    import tinker
    from torch import Tensor

    from ptl_ppo.method import PPO


@dataclass(frozen=True)
class Estimate:
    """What the critic made of a reply as its batch began, for each of its T tokens."""

    rollout: Rollout
    V: list[float]
    """Values (T,), in units of the reward."""
    A: list[float]
    """Advantages (T,)."""

    @property
    def R(self) -> list[float]:
        """A + V (T,): what the critic is to say."""
        return [a + v for a, v in zip(self.A, self.V, strict=True)]


@dataclass(frozen=True)
class Critic:
    """The client that trains it, with its two tokens."""

    client: tinker.TrainingClient
    config: PPO.Config
    yes: int
    no: int
    wait: Waiter

    @classmethod
    def of(cls, stage: StageContext, client: tinker.TrainingClient, config: PPO.Config) -> Critic:
        """The critic of a stage.

        Raises:
            UsageError: the model's tokenizer writes yes and no alike.
        """
        asked = [Message("user", verdicts.QUESTION)]
        try:
            said = verdicts.choice(asked, stage.renderer, verdicts.YES, verdicts.NO)
        except StopIteration:
            raise UsageError(
                f"stage '{stage.name}': ppo has no two tokens for its critic to speak in",
                why="the model's tokenizer and chat template write 'yes' and 'no' alike",
                hint="use another model, or grpo, which needs no critic",
                code="wrong-model",
            ) from None
        return cls(client, config, said.yes, said.no, stage.wait)

    def estimate(self, rollouts: Sequence[Rollout]) -> list[Estimate]:
        """Values and advantages of replies, by the critic as it is; waits for it."""
        if not rollouts:
            return []
        data = [self._datum(one) for one in rollouts]
        read = self.wait(self.client.forward(data, "cross_entropy")).loss_fn_outputs
        found = []
        for one, output in zip(rollouts, read, strict=True):
            V = self._values(output["logprobs"].to_torch().float(), one).tolist()
            assert one.reward is not None
            r = [0.0] * (len(V) - 1) + [one.reward]  # it comes with the last token
            found.append(Estimate(one, V, gae(r, V, self.config.gamma, self.config.lam)))
        return found

    def learn(
        self, estimates: Sequence[Estimate], metrics: MutableMapping[str, float]
    ) -> list[tinker.APIFuture[Any]]:
        """Submit optimizer steps on `loss`, without waiting.

        Args:
            metrics: where the loss before the first of them is told, once that is there.
        """
        import tinker
        import torch

        config = self.config
        adam = tinker.AdamParams(
            learning_rate=config.critic_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.grad_clip,
        )
        data = [self._datum(one.rollout) for one in estimates]
        R = torch.tensor([value for one in estimates for value in one.R])
        old = torch.tensor([value for one in estimates for value in one.V])

        def measured(
            data: list[tinker.Datum], logprobs: list[Tensor]
        ) -> tuple[Tensor, dict[str, float]]:
            V = torch.cat(
                [self._values(lp, e.rollout) for lp, e in zip(logprobs, estimates, strict=True)]
            )
            told = loss(V, R, old, config.critic_clip)
            metrics.setdefault("critic/loss", told.item())
            return told, {}

        submitted: list[tinker.APIFuture[Any]] = []
        for _ in range(config.critic_steps):
            submitted.append(self.client.forward_backward_custom(data, measured))
            submitted.append(self.client.optim_step(adam))
        return submitted

    def _values(self, logprobs: Tensor, rollout: Rollout) -> Tensor:
        """V (T,), of log p(yes) and log p(no) after each of the N - 1 tokens that are read."""
        import torch

        yes, no = logprobs.reshape(-1, 2).unbind(-1)
        own = torch.tensor(rollout.segments[0].sampled[1:])  # where the next token is the reply's
        return self.config.critic_scale * (yes - no)[own]

    def _datum(self, rollout: Rollout) -> tinker.Datum:
        """A reply as the critic reads it: N - 1 tokens, at each of them two targets."""
        import tinker

        tokens = rollout.segments[0].tokens[:-1]
        shape = [len(tokens), 2]
        both = tinker.TensorData(data=[self.yes, self.no] * len(tokens), dtype="int64", shape=shape)
        zeros = tinker.TensorData(data=[0.0] * (2 * len(tokens)), dtype="float32", shape=shape)
        return tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens),
            loss_fn_inputs={"target_tokens": both, "weights": zeros},
        )


def loss(V: Tensor, R: Tensor, old: Tensor, clip: float | None) -> Tensor:
    """mean_t 1/2 (V_t - R_t)^2; with `clip` the larger of that and the same of V_t that is held
    within `clip` of what it was, as in OpenAI's PPO2 (baselines).

    Args:
        V: values with their gradient, (T,) of all replies together.
        R: what they are to be (T,).
        old: what they were as the batch began (T,).
    """
    squares = (V - R).square()
    if clip is not None:
        held = old + (V - old).clamp(-clip, clip)
        squares = squares.maximum((held - R).square())
    return squares.mean() / 2

"""A teacher's log-probabilities along a reply, as targets or advantages that the engine takes.

Shapes: P tokens of a prompt, T of a reply to it, N = P + T of both; the engine is sent N - 1 inputs
and targets, of which the last T are learned. K targets a position are the teacher's likeliest
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_recipes.training.requests import sample

if TYPE_CHECKING:
    import tinker
    from numpy.typing import NDArray


MASKED = -1e4
"""Log-probabilities below this are the wire's filling, not a model's."""


@dataclass(frozen=True)
class TokenizedReply:
    """A prompt (P,) and a reply to it (T,) as tokens, as the student sees them."""

    prompt: list[int]
    tokens: list[int]
    truncated: bool = False
    """Whether the reply ended at the token limit rather than by a stop token."""


@dataclass(frozen=True)
class Likeliest:
    """The teacher's K likeliest tokens at each position of a reply, as it told them."""

    ids: NDArray[Any]
    """Token ids (T, K) int64; 0 where the wire filled them in."""
    logprobs: NDArray[Any]
    """Their log-probabilities (T, K), in nats."""

    @property
    def known(self) -> NDArray[Any]:
        """Which of them the teacher named (T, K), bool."""
        known: NDArray[Any] = self.logprobs > MASKED
        return known

    def ratios(self, tokens: Sequence[int], logprobs: Sequence[float]) -> list[float | None]:
        """log p/q of each token (T,) that the student wrote with log-probabilities log p (T,); None
        where it is not among the teacher's."""
        found: list[float | None] = []
        named = self.known
        for token, log_p, ids, log_q, here in zip(
            tokens, logprobs, self.ids, self.logprobs, named, strict=True
        ):
            (place,) = ((ids == token) & here).nonzero()
            found.append(log_p - float(log_q[place[0]]) if len(place) else None)
        return found


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's likeliest tokens at each position of a reply."""

    ids: NDArray[Any]
    """Token ids (T, K) int64."""
    weights: NDArray[Any]
    """Their probabilities (T, K) float32, renormalized over the K, so that each row sums to 1."""
    mass: float
    """Sum over the T positions of the probability that the K tokens have together."""
    entropy: float
    """Sum over the T positions of the entropy of the row, in nats: the least that cross-entropy
    against these targets can be."""


def soft_targets(ids_TK: NDArray[Any], logprobs_TK: NDArray[Any]) -> SoftTargets:
    """Targets from the teacher's top-k log-probabilities.

    With p(k) the teacher's probabilities and S its k likeliest tokens, the weights are
    p(k) / sum over S of p: the tail outside S is given to S in proportion, not dropped, so that a
    position weighs as much as one with a hard target. Entries that the wire filled weigh nothing.
    """
    import numpy as np

    logprobs = logprobs_TK.astype(np.float64)
    p = np.where(logprobs > MASKED, np.exp(logprobs), 0.0)
    mass = p.sum(axis=1, keepdims=True)
    weights = np.divide(p, mass, out=np.zeros_like(p), where=mass > 0)
    safe = np.where(weights > 0, weights, 1.0)
    return SoftTargets(
        ids_TK.astype(np.int64),
        weights.astype(np.float32),
        float(mass.sum()),
        float(-(weights * np.log(safe)).sum()),
    )


@dataclass(frozen=True)
class Shown:
    """What a batch of soft targets showed of the teacher, as means over positions."""

    mass: float
    entropy: float

    def metrics(self, loss: float) -> dict[str, float]:
        """For the log, with the cross-entropy `loss`, a mean over the same positions, in nats.

        `kl` is the forward KL, from the student to the teacher's renormalized top k.
        """
        return {
            "train/loss": loss,
            "kl": loss - self.entropy,
            "teacher/entropy": self.entropy,
            "teacher/mass": self.mass,
        }


def shown(targets: Sequence[SoftTargets]) -> Shown:
    """Of the targets of a batch."""
    count = max(1, sum(len(t.ids) for t in targets))
    return Shown(sum(t.mass for t in targets) / count, sum(t.entropy for t in targets) / count)


def ask_top_k(
    teacher: tinker.SamplingClient, prompt: Sequence[int], reply: Sequence[int], k: int
) -> tinker.APIFuture[tinker.SampleResponse]:
    """Ask for the teacher's `k` likeliest tokens along a reply to `prompt`: one prefill."""
    return sample(teacher, [*prompt, *reply], 1, max_tokens=1, prompt_top_k=k)


def likeliest(response: tinker.SampleResponse, count: int) -> Likeliest:
    """What `ask_top_k` was answered, for the last `count` positions."""
    import numpy as np

    top = response.topk_prompt_logprobs_np
    assert top is not None, "top-k was asked for"
    return Likeliest(top.token_ids[-count:].astype(np.int64), top.logprobs[-count:])


def top_k(response: tinker.SampleResponse, count: int) -> SoftTargets:
    """The same as targets to learn."""
    found = likeliest(response, count)
    return soft_targets(found.ids, found.logprobs)


def soft_datum(reply: TokenizedReply, targets: SoftTargets, scale: float) -> tinker.Datum:
    """A reply whose last positions, as many as there are targets, learn the teacher's K tokens.

    `scale` multiplies the weights; they reach the engine as (N - 1, K), zero before.
    """
    import numpy as np
    import tinker

    tokens = [*reply.prompt, *reply.tokens]
    count, k = targets.ids.shape
    before = len(tokens) - 1 - count
    ids = np.concatenate([np.zeros((before, k), np.int64), targets.ids])
    weights = np.concatenate([np.zeros((before, k), np.float32), targets.weights])
    shape = [before + count, k]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=ids, dtype="int64", shape=shape),
            "weights": tinker.TensorData(
                data=(weights * scale).astype(np.float32), dtype="float32", shape=shape
            ),
        },
    )


def several_targets(reply: TokenizedReply, ids: NDArray[Any]) -> tinker.Datum:
    """A reply of which, at its last T positions, K tokens are asked for (`ids` (T, K)): the engine
    answers with log-probabilities (N - 1, K), for a loss on our side."""
    import numpy as np
    import tinker

    tokens = [*reply.prompt, *reply.tokens]
    count, k = ids.shape
    before = len(tokens) - 1 - count
    targets = np.concatenate([np.zeros((before, k), np.int64), ids])
    shape = [before + count, k]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=targets, dtype="int64", shape=shape)
        },
    )


def hard_datum(reply: TokenizedReply, scale: float) -> tinker.Datum:
    """A reply whose every token is learned, with weight `scale`."""
    return _datum(reply, weights=[scale] * len(reply.tokens))


def policy_datum(
    reply: TokenizedReply, logprobs: Sequence[float], advantages: Sequence[float]
) -> tinker.Datum:
    """A reply that the student sampled with `logprobs` (T,), and each token's advantage (T,)."""
    return _datum(reply, logprobs=logprobs, advantages=advantages)


def _datum(reply: TokenizedReply, **columns: Sequence[float]) -> tinker.Datum:
    """Columns (T,) by loss input; they are zero over the prompt."""
    import tinker

    before = [0.0] * (len(reply.prompt) - 1)
    tokens = [*reply.prompt, *reply.tokens]
    shape = [len(tokens) - 1]
    inputs = {
        name: tinker.TensorData(data=[*before, *values], dtype="float32", shape=shape)
        for name, values in columns.items()
    }
    inputs["target_tokens"] = tinker.TensorData(data=tokens[1:], dtype="int64", shape=shape)
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)

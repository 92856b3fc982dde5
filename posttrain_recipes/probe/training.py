"""Capability checks of training: losses, optimizers, adapters, order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from posttrain_recipes.probe.bench import Bench, Checks, agree, differ, expect, total

check = Checks()


@check("train", "train a LoRA adapter: forward_backward, then optim_step")
def train(bench: Bench) -> None:
    """Three steps on one sequence make it likelier."""
    client = bench.trainer()
    results = [bench.arrays(bench.step(client, [bench.datum()]))[0] for _ in range(3)]
    expect(sum(results[-1]) > sum(results[0]), "three steps did not make the data likelier")


@check("forward", "forward without backward: log-probabilities alone", "train")
def forward(bench: Bench) -> None:
    """Twice the same, and no gradient is left behind."""
    client = bench.trainer()
    before = bench.logprobs(client)
    expect(len(before) == 10, f"{len(before)} log-probabilities for 10 targets")
    expect(all(value < 0 for value in before), "a log-probability is not below 0")
    bench.step(client, [bench.datum(weights=[0.0] * 10)], learning_rate=1e-2)
    agree(bench.logprobs(client), before, "forward left a gradient")


@check("loss:cross_entropy", "-sum w log p", "train")
def cross_entropy(bench: Bench) -> None:
    """The loss is what the log-probabilities say."""
    weights = [0.0, 0.5, 1.0, -1.0, 2.0] * 2
    out = bench.wait(
        bench.fresh.forward([bench.datum(weights=weights), bench.datum(3, 7)], "cross_entropy")
    )
    first, second = bench.arrays(out)
    want = -sum(w * p for w, p in zip(weights, first, strict=True)) - sum(second)
    agree(total(out), want, "the loss is not -sum w log p")


SIGNS = [1.0, -1.0] * 5
OFF = [0.0, -0.4, 0.4, 0.3, -0.3] * 2
"""How far the sampler's log-probabilities are from the learner's."""


def _policy(bench: Bench, loss: Any, config: dict[str, float] | None, **more: Any) -> Any:
    """(loss, sum of `value(log p, log q, advantage)`) of one pass."""
    learner = bench.logprobs(bench.fresh)
    sampler = [p - d for p, d in zip(learner, OFF, strict=True)]
    datum = bench.datum(logprobs=sampler, advantages=SIGNS, **more)
    out = bench.wait(bench.fresh.forward_backward([datum], loss, config))
    agree(bench.arrays(out)[0], learner, "its log-probabilities are not the model's")
    return total(out), list(zip(bench.arrays(out)[0], sampler, SIGNS, strict=True))


def _clip(ratio: float, low: float, high: float) -> float:
    return min(max(ratio, low), high)


Value = Callable[[float, float, float], float]
LOSSES: dict[str, tuple[str, dict[str, float] | None, Value]] = {
    "importance_sampling": ("-sum r A", None, lambda p, q, a: -math.exp(p - q) * a),
    "ppo": (
        "-sum min(r A, clip(r) A)",
        {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
        lambda p, q, a: -min(math.exp(p - q) * a, _clip(math.exp(p - q), 0.9, 1.1) * a),
    ),
    "cispo": (
        "-sum clip(r) A log p, the clipped ratio held fixed",
        {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
        lambda p, q, a: -_clip(math.exp(p - q), 0.9, 1.1) * a * p,
    ),
    "dro": (
        "-sum (A log p - beta/2 (log p - log q)^2)",
        {"beta": 0.5},
        lambda p, q, a: -(a * p - 0.25 * (p - q) ** 2),
    ),
}


def _register(name: str, formula: str, config: dict[str, float] | None, value: Value) -> None:
    @check(f"loss:{name}", formula, "forward", "loss:cross_entropy")
    def run(bench: Bench) -> None:
        got, rows = _policy(bench, name, config)
        agree(got, sum(value(*row) for row in rows), f"the loss is not {formula}")


for _name, (_formula, _config, _value) in LOSSES.items():
    _register(_name, _formula, _config, _value)


@check("loss:gspo", "PPO with one ratio a sequence", "forward", "loss:cross_entropy")
def gspo(bench: Bench) -> None:
    """With one ratio for all tokens the value is the ratio times the advantages."""
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}
    got, rows = _policy(bench, "gspo", config, sequence_ratio_mask=[1.0] * 10)
    ratio = math.exp(sum(p - q for p, q, _ in rows) / len(rows))
    agree(got, -sum(ratio * a for _, _, a in rows), "the loss is not -sum r A, r the mean ratio")


@check("targets:several", "several weighted targets a position", "loss:cross_entropy")
def several_targets(bench: Bench) -> None:
    """A second target of weight 0.25 counts so much."""
    import torch
    from tinker import types

    plain = bench.datum()
    targets, weights = torch.zeros(10, 2, dtype=torch.int64), torch.zeros(10, 2)
    targets[:, 0] = plain.loss_fn_inputs["target_tokens"].to_torch()
    targets[:, 1] = 3
    weights[:, 0], weights[:, 1] = 0.75, 0.25
    inputs = {"target_tokens": targets, "weights": weights}
    datum = types.Datum(model_input=plain.model_input, loss_fn_inputs=inputs)
    out = bench.wait(bench.fresh.forward([datum], "cross_entropy"))
    flat = bench.arrays(out)[0]
    expect(len(flat) == 20, f"{len(flat)} log-probabilities for 10 x 2 targets")
    want = -sum(p * (0.75, 0.25)[i % 2] for i, p in enumerate(flat))
    agree(total(out), want, "the loss is not the weighted sum")
    agree(flat[::2], bench.logprobs(bench.fresh), "the first target's are not those of one target")


APART = 0.25
"""Of what a sequence moves at full weight, the most that it may at a hundredth of it."""


@check("gradient:sum", "gradients that are sums of weights times slopes, signed", "forward")
def gradient_sum(bench: Bench) -> None:
    """A second sequence of weight 0.01, or of -0.01, hardly moves the step of the first.

    The loss that a server reports does not tell: one that divides each sequence's gradient by the
    sum of its weights reports the same, loses what the weights say, and explodes where they are
    negative. A loss that runs on the client is sent as such weights.
    """

    def after(weight: float | None) -> list[float]:
        client = bench.trainer()
        data = [bench.datum()]
        if weight is not None:
            data.append(bench.datum(9, weights=[weight] * 10))
        bench.step(client, data)
        values = [*bench.logprobs(client), *bench.logprobs(client, 9)]
        bench.release()
        return values

    alone, whole = after(None), after(1.0)
    full = math.dist(whole, alone)
    expect(full > 1e-3, "a second sequence moves nothing at all")
    for weight in (0.01, -0.01):
        share = math.dist(after(weight), alone) / full
        expect(
            share < APART,
            f"a sequence of weight {weight} moves the step {share:.2g} times as much as one of "
            "weight 1: gradients are divided by the sum of a sequence's weights, so that weights "
            "are lost and negative ones explode",
        )


def _doubled(data: Any, values: Any) -> Any:
    return -2 * sum(value.sum() for value in values), {"twice": 2.0}


@check("custom_loss", "a loss that runs on the client (forward_backward_custom)", "gradient:sum")
def custom_loss(bench: Bench) -> None:
    """Twice cross-entropy, on the client, is cross-entropy with weights of 2."""
    from tinker import types

    custom, plain = bench.trainer(), bench.trainer()
    datum = bench.datum()
    bare = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
    light = types.Datum(model_input=datum.model_input, loss_fn_inputs=bare)
    passed = custom.forward_backward_custom([light], _doubled)
    stepped = custom.optim_step(bench.adam())
    out, _ = bench.wait_all(passed, stepped)
    agree(float(out.metrics["twice"]), 2.0, "its metric came back changed")
    bench.step(plain, [bench.datum(weights=[2.0] * 10)])
    agree(bench.logprobs(custom), bench.logprobs(plain), "it is not the same as weights of 2")


@check("custom_loss:server", "a loss that is traced and runs on the server", "custom_loss")
def server_loss(bench: Bench) -> None:
    """The loss's value, computed there."""
    expect(hasattr(bench.shared, "create_custom_loss"), "this SDK cannot send one")

    def squares(logprobs: Any, weights: Any) -> Any:
        loss = (weights * logprobs * logprobs).sum()
        return loss, {"custom/squares:sum": loss}

    handle = bench.wait(bench.shared.create_custom_loss(squares, {"logprobs": 1, "weights": 1}))
    expect(handle.loss_id is not None, "the server takes none; the SDK runs it on the client")
    out = bench.wait(bench.fresh.forward_backward_custom([bench.datum()], handle))
    want = sum(p * p for p in bench.logprobs(bench.fresh))
    agree(float(out.metrics["custom/squares:sum"]), want, "its value is not the loss's")


@check("accumulate", "gradients add up until optim_step", "forward")
def accumulate(bench: Bench) -> None:
    """Two passes and a step are one pass of both."""
    together, apart = bench.trainer(), bench.trainer()
    both = [bench.datum(), bench.datum(5)]
    bench.step(together, both)
    bench.wait(apart.forward_backward(both[:1], "cross_entropy"))
    bench.step(apart, both[1:])
    agree(bench.logprobs(apart), bench.logprobs(together), "two passes are not one of both")


@check("chunks", "batches that the SDK sends in several parts", "forward")
def chunks(bench: Bench) -> str:
    """More sequences than one request may hold (1,024) come back in their order."""
    count = 1030
    data = [bench.datum(i % 7, 3 + i % 2) for i in range(count)]
    out = bench.arrays(bench.wait(bench.fresh.forward(data, "cross_entropy")))
    expect([len(one) for one in out] == [3 + i % 2 for i in range(count)], "out of order")
    agree(out[-1], out[(count - 1) % 14], "the last sequence is not the one that was sent")
    return f"{count} sequences"


@check("order", "operations run in the order sent, many in flight", "forward")
def order(bench: Bench) -> None:
    """Six steps sent at once are six steps sent one by one."""
    at_once, one_by_one = bench.trainer(), bench.trainer()
    futures = []
    for i in range(6):
        futures.append(at_once.forward_backward([bench.datum(i)], "cross_entropy"))
        futures.append(at_once.optim_step(bench.adam()))
    bench.wait_all(*futures)
    for i in range(6):
        bench.wait(one_by_one.forward_backward([bench.datum(i)], "cross_entropy"))
        bench.wait(one_by_one.optim_step(bench.adam()))
    agree(bench.logprobs(at_once), bench.logprobs(one_by_one), "they ended with other weights", 0.2)


@check("optimizer:grad_clip", "clip the gradient's norm", "forward")
def grad_clip(bench: Bench) -> None:
    """Clipped to nearly nothing, and with a large epsilon, a step moves nothing."""
    client = bench.trainer()
    before = bench.logprobs(client)
    bench.step(client, [bench.datum()], grad_clip_norm=1e-9, eps=0.9)
    agree(bench.logprobs(client), before, "a clipped gradient moved the weights")
    bench.step(client, [bench.datum()])
    differ(bench.logprobs(client), before, "a step moved nothing")


@check("optimizer:betas", "Adam's decays, as they are given", "forward")
def betas(bench: Bench) -> None:
    """Without momentum a step on no gradient moves nothing, and with it on."""
    nothing = [bench.datum(weights=[0.0] * 10)]
    for beta1, moves in ((0.0, False), (0.9, True)):
        client = bench.trainer()
        bench.step(client, [bench.datum()], beta1=beta1)
        before = bench.logprobs(client)
        bench.step(client, nothing, beta1=beta1)
        after = bench.logprobs(client)
        bench.release()
        if moves:
            differ(after, before, "with beta1=0.9 it has no momentum")
        else:
            agree(after, before, "beta1=0 was not obeyed: momentum is left")


@check("optimizer:weight_decay", "decoupled weight decay", "forward")
def weight_decay(bench: Bench) -> None:
    """A decay of everything, without a gradient, leaves an adapter that no step can move."""
    nothing = [bench.datum(weights=[0.0] * 10)]
    for decay in (0.0, 1.0):
        client = bench.trainer()
        bench.step(client, nothing, weight_decay=decay, learning_rate=1.0)
        before = bench.logprobs(client)
        bench.step(client, [bench.datum()])
        after = bench.logprobs(client)
        bench.release()
        if decay:
            agree(after, before, "a decay of 1 left something")
        else:
            differ(after, before, "a step moved nothing")


@check("optimizer:dimuon", "the Dimuon optimizer", "train")
def dimuon(bench: Bench) -> None:
    """A step of it makes the data likelier."""
    from tinker import types

    expect(hasattr(types, "DimuonOptimizerConfig"), "this SDK has none")
    client = bench.trainer(optimizer=types.DimuonOptimizerConfig())
    results = []
    for _ in range(2):
        passed = client.forward_backward([bench.datum()], "cross_entropy")
        stepped = client.optim_step(types.DimuonParams(learning_rate=1e-3))
        out, _ = bench.wait_all(passed, stepped)
        results.append(sum(bench.arrays(out)[0]))
    expect(results[1] > results[0], "a step did not make the data likelier")


@check("lora:seed", "the same seed gives the same adapter", "forward")
def lora_seed(bench: Bench) -> None:
    """Two adapters of one seed are the same after a step; of another seed they are not."""
    ends = []
    for seed in (7, 7, 8):
        client = bench.trainer(seed=seed)
        bench.step(client, [bench.datum()])
        ends.append(bench.logprobs(client))
        bench.release()
    agree(ends[1], ends[0], "one seed gave two adapters")
    differ(ends[2], ends[0], "two seeds gave one adapter")


@check("lora:parts", "choose what is adapted: attention, MLP, unembedding", "train")
def lora_parts(bench: Bench) -> None:
    """Attention alone, or the unembedding too, is not what attention and MLP come to."""
    ends = []
    for switches in ({}, {"train_mlp": False}, {"train_unembed": True}):
        client = bench.trainer(**switches)
        results = [sum(bench.arrays(bench.step(client, [bench.datum()]))[0]) for _ in range(2)]
        expect(results[1] > results[0], "a step did not make the data likelier")
        ends.append(bench.logprobs(client))
        bench.release()
    for end, what in zip(ends[1:], ("train_mlp: false", "train_unembed: true"), strict=True):
        differ(end, ends[0], f"the switches were not obeyed: with {what} it is the same")


@check("lora:several", "several adapters at once, of several ranks", "forward")
def lora_several(bench: Bench) -> None:
    """Training one leaves the other as it was."""
    one, two = bench.trainer(rank=2), bench.trainer(rank=8)
    before = bench.logprobs(two)
    bench.step(one, [bench.datum()])
    agree(bench.logprobs(two), before, "training one adapter changed another")
    differ(bench.logprobs(one), before, "a step moved nothing")


@check("refusal", "a request that cannot be done is refused, and the server goes on", "train")
def refusal(bench: Bench) -> None:
    """A token id beyond any vocabulary; afterwards the same client still works."""
    from tinker import types

    client = bench.trainer()
    bad = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 2_000_000_000]),
        loss_fn_inputs={"target_tokens": [1, 2, 3], "weights": [1.0] * 3},
    )
    try:
        # Without a gradient, which a server that takes it would keep for whoever comes next.
        bench.wait(client.forward([bad], "cross_entropy"))
    except TimeoutError:
        raise
    except Exception:
        pass
    else:
        expect(False, "it took a token id of 2000000000")
    results = [sum(bench.arrays(bench.step(client, [bench.datum()]))[0]) for _ in range(2)]
    expect(results[1] > results[0], "it did not train any more")

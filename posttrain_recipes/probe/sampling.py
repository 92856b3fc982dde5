"""Capability checks of sampling: parameters, stop conditions, log-probabilities."""

from __future__ import annotations

import math
from typing import Any

from posttrain_recipes.probe.bench import Bench, Checks, agree, differ, expect

check = Checks()


@check("sample", "sample from a base model")
def sample(bench: Bench) -> None:
    """As many tokens as asked for, each with a log-probability."""
    asked = bench.sampler.sample(bench.prompt(), 1, bench.params())
    (sequence,) = bench.wait(asked).sequences
    expect(len(sequence.tokens) == 8, f"{len(sequence.tokens)} tokens where 8 were asked for")
    expect(sequence.logprobs is not None, "no log-probabilities came with the tokens")
    finite = all(math.isfinite(p) and p <= 0 for p in sequence.logprobs or ())
    expect(finite and len(sequence.logprobs or ()) == 8, "the log-probabilities make no sense")


@check("sample:group", "several samples of one prompt in one request", "sample")
def group(bench: Bench) -> None:
    """Three, and not all the same."""
    got = bench.sample(3, temperature=1.5)
    expect(len(got) == 3, f"{len(got)} samples where 3 were asked for")
    expect(len({tuple(one) for one in got}) > 1, "all samples are the same")


@check("sample:greedy", "temperature 0", "sample")
def greedy(bench: Bench) -> None:
    """The likeliest tokens, each time."""
    first, second = bench.sample(2, temperature=0.0)
    expect(first == second, "two samples at temperature 0 differ")


@check("sample:seed", "the same seed gives the same tokens", "sample")
def seed(bench: Bench) -> None:
    """Alone and in company."""
    one = bench.sample(2, seed=11)
    crowd = [bench.sampler.sample(bench.prompt(3), 1, bench.params()) for _ in range(3)]
    same, other = bench.sample(2, seed=11), bench.sample(2, seed=12)
    bench.wait_all(*crowd)
    expect(one == same, "one seed gave different tokens")
    expect(one != other, "two seeds gave the same tokens")


@check("sample:top_k", "sample from the K likeliest", "sample:greedy")
def top_k(bench: Bench) -> None:
    """Of one, only the likeliest is left."""
    expect(bench.sample(top_k=1) == bench.sample(temperature=0.0), "top_k=1 is not the likeliest")


@check("sample:top_p", "sample from the likeliest that make up P", "sample:greedy")
def top_p(bench: Bench) -> None:
    """Of hardly any, only the likeliest is left."""
    expect(
        bench.sample(top_p=1e-6) == bench.sample(temperature=0.0), "top_p=1e-6 is not the likeliest"
    )


@check("sample:stop_tokens", "stop at token ids", "sample:greedy")
def stop_tokens(bench: Bench) -> None:
    """The likeliest reply, cut where its third kind of token comes."""
    (whole,) = bench.sample(temperature=0.0)
    at = len(whole) // 2
    cut = whole.index(whole[at])
    (got,) = bench.sample(temperature=0.0, stop=[whole[at]])
    expect(got in (whole[: cut + 1], whole[:cut]), "it did not stop at the token")


@check("sample:stop_strings", "stop at text", "sample:greedy", "train")
def stop_strings(bench: Bench) -> str | None:
    """The likeliest reply, cut at some text of its middle."""
    (whole,) = bench.sample(temperature=0.0)
    for i in range(2, len(whole)):
        text = bench.tokenizer.decode([whole[i]])
        if text.strip() and text.isascii():
            break
    else:
        return "not told apart: the reply has no plain text"
    (got,) = bench.sample(temperature=0.0, stop=[text])
    expect(len(got) <= i + 1, "it did not stop at the text")
    return None


@check("prompt_logprobs", "log-probabilities of a given text (compute_logprobs)", "sample")
def prompt_logprobs(bench: Bench) -> None:
    """None for the first token, and a number for each other."""
    values = bench.wait(bench.sampler.compute_logprobs(bench.prompt()))
    expect(len(values) == 8, f"{len(values)} values for 8 tokens")
    expect(values[0] is None, "the first token, which nothing precedes, has a value")
    expect(all(v is not None and v <= 0 for v in values[1:]), "a value is missing or above 0")


@check(
    "sample:tempered_logprobs",
    "log-probabilities of the distribution that is sampled from, whatever the temperature",
    "prompt_logprobs",
)
def tempered_logprobs(bench: Bench) -> None:
    """At temperature 0.5 they are those of p squared, so that no token has the one of p."""
    asked = bench.sampler.sample(bench.prompt(), 1, bench.params(temperature=0.5))
    (drawn,) = bench.wait(asked).sequences
    whole = bench.prompt().from_ints([*bench.prompt().to_ints(), *drawn.tokens])
    plain = list(bench.wait(bench.sampler.compute_logprobs(whole)))[-len(drawn.tokens) :]
    differ(
        list(drawn.logprobs or ()),
        plain,
        "the log-probabilities of samples are those at temperature 1, so that ratios and KL would "
        "be of a distribution that nothing was drawn from; set 'temperature: 1'",
    )


@check("prompt_logprobs:sample", "prompt log-probabilities beside samples", "prompt_logprobs")
def with_sample(bench: Bench) -> None:
    """The same as `compute_logprobs` gives."""
    alone = bench.wait(bench.sampler.compute_logprobs(bench.prompt()))
    asked = bench.sampler.sample(bench.prompt(), 1, bench.params(), include_prompt_logprobs=True)
    beside = bench.wait(asked).prompt_logprobs
    expect(beside is not None, "none came")
    agree(list(beside[1:]), list(alone[1:]), "they are not what compute_logprobs gives")


@check("prompt_logprobs:top_k", "the K likeliest at each prompt position", "prompt_logprobs")
def prompt_top_k(bench: Bench) -> None:
    """Three each, likeliest first."""
    asked = bench.sampler.sample(bench.prompt(), 1, bench.params(), True, 3)
    rows = bench.wait(asked).topk_prompt_logprobs
    expect(rows is not None and len(rows) == 8, "no table of the likeliest came")
    for row in rows[1:]:
        values = [value for _, value in row or ()]
        expect(len(values) == 3, f"{len(values)} of 3 at a position")
        expect(values == sorted(values, reverse=True), "not the likeliest first")


@check("prompt_logprobs:targets", "log-probabilities of chosen tokens", "prompt_logprobs")
def prompt_targets(bench: Bench) -> None:
    """Those of the prompt's own tokens are the prompt's."""
    import torch
    from tinker import types

    prompt = bench.prompt()
    alone = bench.wait(bench.sampler.compute_logprobs(prompt))
    targets = torch.tensor([[token] for token in prompt.to_ints()[1:]])
    asked = bench.sampler.sample(
        prompt, 1, bench.params(), target_prompt_logprobs=types.TensorData.from_torch(targets)
    )
    got = bench.wait(asked).target_prompt_logprobs
    expect(got is not None, "none came")
    agree([float(v) for v in got.data], list(alone[1:]), "they are not the prompt's own")


@check("sample:top_logprobs", "the K likeliest at each sampled position", "sample:greedy")
def sample_top_k(bench: Bench) -> None:
    """At temperature 0, what was sampled is the likeliest."""
    params = bench.params(temperature=0.0)
    asked = bench.sampler.sample(bench.prompt(), 1, params, topk_sample_logprobs=2)
    (sequence,) = bench.wait(asked).sequences
    rows: Any = sequence.topk_logprobs
    expect(rows is not None and len(rows) == len(sequence.tokens), "no table came")
    expect([row[0][0] for row in rows] == list(sequence.tokens), "its first is not the likeliest")


@check("logprobs", "sampling and training agree on log-probabilities", "prompt_logprobs", "forward")
def logprobs(bench: Bench) -> str:
    """A fresh adapter changes nothing, so the base model's are the trainer's."""
    trained = bench.logprobs(bench.fresh)
    tokens = [*bench.datum().model_input.to_ints(), bench.datum(1).model_input.to_ints()[-1]]
    prompt = bench.prompt().from_ints(tokens)
    sampled = bench.wait(bench.sampler.compute_logprobs(prompt))[1:]
    agree(list(sampled), trained, "they do not")
    apart = max(abs(a - b) for a, b in zip(sampled, trained, strict=True))
    return f"within {apart:.1g}"


@check("sample:trained", "sample from weights in training", "train", "prompt_logprobs")
def trained(bench: Bench) -> None:
    """The sampler has the weights of when it was made."""
    client = bench.trainer()
    bench.step(client, [bench.datum()])
    sampler = bench.wait(client.save_weights_and_get_sampling_client())
    prompt = bench.prompt()
    values = list(bench.wait(sampler.compute_logprobs(prompt))[1:])
    base = list(bench.wait(bench.sampler.compute_logprobs(prompt))[1:])
    differ(values, base, "the sampler has the base model's weights")
    agree(values, bench.logprobs(client)[:7], "it has other weights than the trainer")


@check("sample:snapshot", "a sampler keeps its weights as training goes on", "sample:trained")
def snapshot(bench: Bench) -> None:
    """Neither does training change it, nor does sampling from it change what is trained."""
    client = bench.trainer()
    bench.step(client, [bench.datum()])
    sampler = bench.wait(client.save_weights_and_get_sampling_client())
    prompt = bench.prompt()

    def sampled() -> list[float]:
        return list(bench.wait(sampler.compute_logprobs(prompt))[1:])

    values = sampled()
    bench.step(client, [bench.datum(5)])
    trained = bench.logprobs(client)
    agree(sampled(), values, "it changed by training")
    newer = bench.wait(client.save_weights_and_get_sampling_client())
    bench.wait(newer.compute_logprobs(prompt))
    agree(sampled(), values, "it changed as a newer one was made")
    agree(bench.logprobs(client), trained, "sampling from it changed the weights in training")


@check("loss:stable_reinforce", "train on sampled tokens by StableReinforce", "sample:trained")
def stable_reinforce(bench: Bench) -> str | None:
    """A pass over a sequence of its own, whose tokens' origins it is told."""
    from tinker import types

    expect(hasattr(types, "SampledProvenanceSpan"), "this SDK cannot say which tokens are sampled")
    client, prompt = bench.trainer(), bench.prompt()
    sampler = bench.wait(client.save_weights_and_get_sampling_client(record_stability_info=True))
    (drawn,) = bench.wait(sampler.sample(prompt, 1, bench.params())).sequences
    name, before, count = drawn.sequence_id, prompt.length, len(drawn.tokens)
    ids = [*prompt.to_ints(), *drawn.tokens]
    given, sampled = types.PromptProvenanceSpan, types.SampledProvenanceSpan
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": ids[1:],
            "logprobs": [0.0] * (before - 1) + list(drawn.logprobs or ()),
            "advantages": [0.0] * (before - 1) + [1.0] * count,
        },
    ).with_provenance(
        model_input=[
            given(sequence_id=name, length=before),
            sampled(sequence_id=name, length=count - 1),
        ],
        loss_fn_inputs=[
            given(sequence_id=name, offset=1, length=before - 1),
            sampled(sequence_id=name, length=count),
        ],
    )
    out = bench.wait(client.forward_backward([datum], "stable_reinforce"))
    replaced = [key for key in out.metrics if key.startswith("stable_reinforce_replaced_by_")]
    return replaced[0].removeprefix("stable_reinforce_").partition(":")[0] if replaced else None


@check("sample:cancel", "give up a request that is under way", "sample")
def cancel(bench: Bench) -> None:
    """The next one is answered."""
    from tinker import types

    long = types.SamplingParams(max_tokens=200, temperature=1.0, seed=1)
    pending = bench.sampler.sample(bench.prompt(), 8, long)
    pending.future().cancel()
    short = types.SamplingParams(max_tokens=1, temperature=1.0, seed=1)
    expect(bench.wait(bench.sampler.sample(bench.prompt(), 1, short)).sequences, "no answer")

"""What steers sampling on the OpenAI routes, each rule against its formula written again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine.generate.sampler import prepare
from posttrain_recipes.engine.generate.sequences import SequenceGroup, _by_rules, sample_tokens
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import (
    Chunk,
    LogitRules,
    ModelInput,
    RequestError,
    SampleRequest,
    SamplingParams,
)
from tests.device import base_model
from tests.engine_model import EOS, VOCAB, build

PROMPT, SAID = [3, 4, 4], [7, 4, 7, 9]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return base_model(build(tmp_path_factory.mktemp("m")))


def group(base: BaseModel, rules: LogitRules | None, **params: Any) -> SequenceGroup:
    request = SampleRequest(
        "", 0, ModelInput([Chunk(tokens=PROMPT)]),
        SamplingParams(**{"max_tokens": 20, "seed": 1, **params}), rules=rules,
    )  # fmt: skip
    made = SequenceGroup(prepare(base, request))
    made.sequences[0].draw()  # the first of its random numbers are drawn with the first token
    made.sequences[0].tokens = list(SAID)
    return made


def formula(row: np.ndarray, rules: LogitRules, temperature: float) -> np.ndarray:
    out, times = row.astype(np.float64), Counter(SAID)
    for token in {*PROMPT, *SAID}:
        by = rules.repetition_penalty
        out[token] = out[token] / by if out[token] > 0 else out[token] * by
    for token, count in times.items():
        out[token] -= rules.frequency_penalty * count + rules.presence_penalty
    for token, bias in rules.logit_bias.items():
        out[token] += bias
    if len(SAID) < rules.min_tokens:
        out[EOS] = -np.inf
    if rules.min_p:
        probs = np.exp(out / temperature - (out / temperature).max())
        out[probs < rules.min_p] = -np.inf
    return out


@pytest.mark.parametrize(
    "rules",
    [
        LogitRules(min_p=0.3),
        LogitRules(min_tokens=5),
        LogitRules(min_tokens=4),
        LogitRules(presence_penalty=1.5),
        LogitRules(frequency_penalty=-0.7),
        LogitRules(repetition_penalty=1.3),
        LogitRules(repetition_penalty=0.6),
        LogitRules(logit_bias={0: 5.0, 200: -100.0}),
        LogitRules(0.1, 9, 0.5, 0.25, 1.2, {7: 2.0}),
    ],
)
def test_each_rule_is_its_formula(base: BaseModel, rules: LogitRules) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (2, VOCAB)).astype(np.float32))
    ruled, plain = (group(base, one, temperature=0.7).sequences[0] for one in (rules, None))
    before = logits.clone()
    changed = _by_rules(logits, [ruled, plain])
    np.testing.assert_allclose(changed[0], formula(before[0].numpy(), rules, 0.7), rtol=1e-5)
    torch.testing.assert_close(changed[1], before[1])
    torch.testing.assert_close(logits, before)


def test_log_probabilities_stay_those_of_the_model(base: BaseModel) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(2, VOCAB)).astype(np.float32))
    sequences = [
        group(base, LogitRules(logit_bias={5: 100.0})).sequences[0], group(base, None).sequences[0]
    ]  # fmt: skip
    sample_tokens(base, sequences, logits)
    want = torch.log_softmax(logits, dim=-1)
    assert sequences[0].tokens[-1] == 5
    for row, sequence in enumerate(sequences):
        own = float(want[row, sequence.tokens[-1]])
        assert sequence.logprobs[-1] == pytest.approx(own, abs=1e-5)


def test_nothing_ends_a_reply_that_is_too_short(base: BaseModel) -> None:
    certain = torch.full((1, VOCAB), -30.0)
    certain[0, EOS] = 30.0
    sequence = group(base, LogitRules(min_tokens=6), temperature=0.0).sequences[0]
    for _ in range(2):
        assert not sample_tokens(base, [sequence], certain)
        assert sequence.tokens[-1] != EOS
    assert sample_tokens(base, [sequence], certain) == [sequence]
    assert sequence.tokens[-1] == EOS


@pytest.mark.parametrize(
    ("bias", "says"), [({VOCAB: 1.0}, "vocabulary"), ({1: 101.0}, "between -100 and 100")]
)
def test_a_bias_that_makes_no_sense_is_refused(
    base: BaseModel, bias: dict[int, float], says: str
) -> None:
    with pytest.raises(RequestError, match=f"logit_bias.*{says}"):
        group(base, LogitRules(logit_bias=bias))

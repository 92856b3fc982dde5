"""A service in memory whose every token tells its weights and its seed, and a stage of RL on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import (
    LoraConfig,
    Message,
    PluginConfig,
    Prompt,
    Record,
    Resume,
    Reward,
    Sample,
    ServedModel,
    StageContext,
)
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.training.rl.policy_loss import PolicyConfig
from posttrain_recipes.training.rl.rollout import Group

ROOM = 50  # seconds that a test would wait for something that never comes


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Renderer:
    stop = [0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [1, 2, int(messages[-1].content)]

    def raw(self, tokens: Sequence[int]) -> str:
        return self.parse(tokens)

    def parse(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


@dataclass
class Asked:
    version: int
    prompt: list[int]
    count: int
    seed: int


@dataclass
class Engine:
    """The service, its training client and its samplers; the weights are a number of steps."""

    version: int = 0
    run: str = "a"
    asked: list[Asked] = field(default_factory=list)
    passes: list[list[Any]] = field(default_factory=list)
    """Data of every forward_backward, in order; `None` in between is an optimizer step."""
    read: list[tuple[int, list[list[int]]]] = field(default_factory=list)
    """Of every forward pass alone: the weights, and the tokens (N - 1,) of each sequence."""
    losses: list[tuple[str, Any]] = field(default_factory=list)
    log: list[tuple[dict[str, float], int]] = field(default_factory=list)
    kept: list[Resume] = field(default_factory=list)
    due_at: tuple[int, ...] = ()
    """Steps after which an eval is due."""
    ends_at: int | None = None
    """The step whose checkpoint ends the stage."""
    shown: list[tuple[int, list[Sample]]] = field(default_factory=list)
    left: list[Any] = field(default_factory=list)
    """What was collected for later stages, with `None` at each checkpoint."""
    hold: Callable[[int], Future[Any] | None] = lambda place: None
    fail: Callable[[int], None] = lambda nth: None
    lock: threading.Lock = field(default_factory=threading.Lock)
    total: int = 0
    cut: bool = False
    """Whether every reply ends at the limit of tokens."""
    names: list[str] = field(default_factory=list)
    """What checkpoints were called."""

    # the service

    def create_lora_training_client(self, **options: Any) -> Future[Any]:
        return done(self)

    def create_training_client_from_state_with_optimizer(self, path: str) -> Future[Any]:
        self.version = int(path.rsplit("-", 1)[1])
        return done(self)

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> Future[Any]:
        return done(Sampler(self, int(model_path.rsplit("-", 1)[1]) if model_path else 0))

    # the training client

    def forward_backward(self, data: list[Any], loss: str, settings: Any = None) -> Future[Any]:
        self.passes.append(data)
        self.losses.append((loss, settings))
        outputs = [
            {"logprobs": SimpleNamespace(data=[-0.5] * datum.model_input.length)} for datum in data
        ]
        return done(SimpleNamespace(metrics={"loss:sum": 1.0}, loss_fn_outputs=outputs))

    def forward(self, data: list[Any], loss: str) -> Future[Any]:
        self.read.append((self.version, [datum.model_input.to_ints() for datum in data]))
        logprob = -0.5 - 0.1 * self.version  # samplers say -0.5 of every token
        outputs = [
            {"logprobs": SimpleNamespace(data=[logprob] * datum.model_input.length)}
            for datum in data
        ]
        return done(SimpleNamespace(metrics={}, loss_fn_outputs=outputs))

    def optim_step(self, adam: Any) -> Future[Any]:
        self.version += 1
        self.passes.append([])
        return done(SimpleNamespace(metrics={"grad_norm:mean": 0.5}))

    def save_state(self, name: str, overwrite: bool = False) -> Future[Any]:
        self.names.append(name)
        return done(SimpleNamespace(path=f"tinker://{self.run}/weights/{name}-{self.version}"))

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> Future[Any]:
        self.names.append(name)
        path = f"tinker://{self.run}/sampler_weights/{name}-{self.version}"
        return done(SimpleNamespace(path=path))

    def save_weights_and_get_sampling_client(self) -> Future[Any]:
        return done(Sampler(self, self.version))


@dataclass(eq=False)
class Sampler:
    engine: Engine
    version: int

    def sample(self, prompt: Any, count: int, params: Any, **more: Any) -> Future[Any]:
        tokens = prompt.to_ints()
        if more:  # the likeliest two along a prompt: the more certain, the larger its last token
            rows = [[np.log(p), np.log(1 - p)] for p in (0.5 + token / 250 for token in tokens)]
            return done(SimpleNamespace(topk_prompt_logprobs_np=SimpleNamespace(logprobs=rows)))
        with self.engine.lock:
            nth = len(self.engine.asked)
            self.engine.asked.append(Asked(self.version, tokens, count, params.seed))
        self.engine.fail(nth)
        seed = params.seed if params.temperature else 0
        rng = np.random.default_rng([self.version, seed, tokens[-1]])
        sequences = []
        for _ in range(count):
            length = int(rng.integers(1, 5))
            drawn = rng.integers(3, 90, size=length).tolist()
            sequences.append(
                SimpleNamespace(
                    tokens=drawn,
                    logprobs=[-0.5] * length,
                    stop_reason="length" if length == 4 or self.engine.cut else "stop",
                )
            )
        answer = SimpleNamespace(sequences=sequences)
        held = self.engine.hold(tokens[-1])
        if held is None:
            return done(answer)
        later: Future[Any] = Future()
        held.add_done_callback(lambda _: later.set_result(answer))
        return later

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        return done([None] + [-1.5] * (prompt.length - 1))


class Parity(Reward):
    """1 where the first token is even."""

    name = "parity"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(int(sample.completion.split()[0]) % 2 == 0) for sample in samples]


class Same(Reward):
    """The same for all: nothing to learn."""

    name = "same"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [1.0] * len(samples)


PROMPTS = [
    Prompt(messages=(Message("user", str(number)),), source=f"p:{number}")
    for number in range(100, 110)
]


def run(
    engine: Engine,
    *,
    resume: Resume | None = None,
    rewards: Sequence[Reward] = (Parity(PluginConfig()),),
    wait: Callable[[Future[Any]], Any] | None = None,
    train: Sequence[Record] = PROMPTS,
    name: str = "grpo",
    kind: type[GRPO] = GRPO,
    **options: Any,
) -> Checkpoint:
    # Its reference and its policy read alike, and neither as it samples.
    small = {"batch_size": 4, "group_size": 6, "max_tokens": 4, "behaviour_logprobs": "sampled"}
    method = kind(GRPO.Config(**small | options))
    sink = SimpleNamespace(
        begin=lambda total: setattr(engine, "total", total),
        log=lambda metrics, step: engine.log.append((dict(metrics), step)),
        checkpoint=lambda resume: (engine.kept.append(resume), engine.left.append(None)),
        collect=engine.left.extend,
        due=lambda step: step in engine.due_at,
        review=lambda: bool(engine.kept) and engine.kept[-1].step == engine.ends_at,
        show=lambda name, samples, step: engine.shown.append((step, list(samples))),
    )
    stage = StageContext(
        name=name,
        seed=5,
        base_model="base",
        start=Checkpoint("base"),
        lora=LoraConfig(rank=4),
        train=train,
        renderer=Renderer(),  # type: ignore[arg-type]
        service=engine,  # type: ignore[arg-type]
        sink=sink,  # type: ignore[arg-type]
        wait=wait or (lambda future: future.result(ROOM)),
        rewards=[(reward, 1.0) for reward in rewards],
        resume=resume,
        resolve=lambda ref: ServedModel(Checkpoint("base"), Renderer(), Sampler(engine, 0)),  # type: ignore[arg-type]
    )
    return method.train(stage)


def trained(engine: Engine) -> list[Any]:
    """What every forward_backward was given, as plain values."""
    return [
        [
            (
                datum.model_input.to_ints(),
                datum.loss_fn_inputs["target_tokens"].tolist(),
                [round(float(a), 9) for a in datum.loss_fn_inputs["advantages"].tolist()],
            )
            for datum in data
        ]
        for data in engine.passes
    ]


def weigh(config: PolicyConfig, groups: Sequence[Group], size: int, max_tokens: int) -> None:
    """Give every rollout its advantage and weight, as the methods do."""
    for group in groups:
        advantages = config.estimate(group, groups)
        group.weigh(advantages, config.token_weights(group, max_tokens), size)

"""tinker-cookbook's own programs, unmodified, offline, from its wheel, against the engine.

| program                              | test                                              |
|--------------------------------------|---------------------------------------------------|
| recipes/sl_loop                      | test_sl_loop_learns                               |
| recipes/rl_loop                      | test_rl_loop_goes_on_from_what_sl_loop_saved      |
| recipes/math_rl, arithmetic: sync,   | test_math_rl                                      |
|   async, streaming, PPO's loss       |                                                   |
| the same, where nothing is           | test_a_loss_that_is_not_there_is_refused_before_  |
|   substituted                        |   anything_is_trained                             |
| recipes/chat_sl on a JSONL file      | test_chat_sl_learns_a_file                        |
| recipes/preference/dpo               | test_dpo_starts_at_its_reference_and_leaves_it    |
| recipes/multiplayer_rl/guess_number  | test_guess_number_trains_on_whole_conversations   |
| recipes/distillation/on_policy_...   | test_a_student_nears_its_teacher                  |

With its release 0.6 the programs of RL ask for `stable_reinforce`, and PPO's loss is computed in
its place: the engine is started as by `ptl serve --substitute stable_reinforce=ppo`. With 0.5 they
ask for `importance_sampling`.

Each test reads what the program itself wrote down: `metrics.jsonl` and `checkpoints.jsonl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import models
from tests import forks
from tests.cookbook_programs import HUB_NAME, guesses, run, write_chat

RECIPES = "tinker_cookbook.recipes"
TINY = models.resolve("ptl/tiny")
NANO = models.resolve("ptl/nano")
SUBSTITUTES = {"stable_reinforce": "ppo"}
REPLACED = "stable_reinforce_replaced_by_ppo:max"
DEFAULT_IS_STABLE = version("tinker-cookbook").split(".") >= ["0", "6"]
WAIT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a program left."""

    metrics: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics if name in row]


class Kitchen:
    """Where programs are run, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = forks.context()

    def cook(
        self, name: str, module: str, start: dict[str, Any] | None = None, **arguments: Any
    ) -> Outcome:
        """Run a program to its end. `start` is a checkpoint that it finds in its log folder."""
        status, said, out = self.try_to(name, module, start, **arguments)
        assert status == 0, f"exit status {status}:\n{said[-3000:]}"
        return out

    def try_to(
        self, name: str, module: str, start: dict[str, Any] | None = None, **arguments: Any
    ) -> tuple[int | None, str, Outcome]:
        """Run a program: its exit status, what it printed, and what it left."""
        log = self.folder / name
        log.mkdir()
        if start is not None:
            (log / "checkpoints.jsonl").write_text(json.dumps(start) + "\n")
        if not module.endswith("_loop"):  # those ask nothing
            arguments["behavior_if_log_dir_exists"] = "resume"
        output = self.folder / f"{name}.txt"
        process = self.processes.Process(
            target=run,
            args=(
                f"{RECIPES}.{module}",
                {**arguments, "log_path": log},
                TINY,
                str(output),
                dict(os.environ),
            ),
        )
        process.start()
        process.join(WAIT_S)
        status = process.exitcode
        process.kill()
        process.join()
        left = Outcome(_lines(log / "metrics.jsonl"), _lines(log / "checkpoints.jsonl"))
        return status, output.read_text(), left


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def opened(folder: Path, served: dict[str, str], substitutes: dict[str, str]) -> Iterator[Kitchen]:
    with (
        forks.served(served, folder / "engine", substitutes=substitutes) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TINKER_BASE_URL", address)
        patch.setenv("TINKER_API_KEY", forks.TOKEN)
        patch.setenv("TINKER_TELEMETRY", "0")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")  # nobody: the way to the network is shut
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield Kitchen(folder)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    with opened(tmp_path_factory.mktemp("cookbook"), {HUB_NAME: TINY}, SUBSTITUTES) as made:
        yield made


COMMON = {"model_name": TINY, "renderer_name": "qwen3_instruct", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def boxed(kitchen: Kitchen) -> Outcome:
    return kitchen.cook(
        "sl_loop", "sl_loop", model_name=HUB_NAME, lora_rank=8, learning_rate=1e-2,
        batch_size=16, max_length=512, save_every=8, max_steps=16,
    )  # fmt: skip


def test_sl_loop_learns(boxed: Outcome) -> None:
    loss = boxed.column("train_mean_nll")
    assert len(loss) == 16
    assert loss[-1] < 0.2 * loss[0]
    assert [c["name"] for c in boxed.checkpoints] == ["000008", "final"]


def test_rl_loop_goes_on_from_what_sl_loop_saved(kitchen: Kitchen, boxed: Outcome) -> None:
    first = boxed.checkpoints[-1]["batch"]
    out = kitchen.cook(
        "rl_loop", "rl_loop", start=boxed.checkpoints[-1], model_name=HUB_NAME, lora_rank=8,
        learning_rate=1e-3, batch_size=8, group_size=4, max_tokens=24, max_steps=first + 3,
    )  # fmt: skip
    assert out.column("progress/batch") == [first, first + 1, first + 2]
    assert max(out.column("reward/total")) > 0
    assert max(out.column("grad_norm:mean")) > 0
    assert out.column(REPLACED) == [1.0] * (3 if DEFAULT_IS_STABLE else 0)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("sync", {}),
        ("ppo", {"loss_fn": "ppo", "num_substeps": 2}),
        ("async", {"max_steps_off_policy": 2}),
        (
            "streaming",
            {
                "stream_minibatch_config.groups_per_batch": 4,
                "stream_minibatch_config.num_minibatches": 2,
            },
        ),
    ],
)
def test_math_rl(kitchen: Kitchen, way: str, options: dict[str, Any]) -> None:
    out = kitchen.cook(
        f"math_{way}", "math_rl.train", **COMMON, lora_rank=8, env="arithmetic",
        groups_per_batch=4, group_size=4, max_tokens=8, max_steps=3, save_every=2, eval_every=0,
        **options,
    )  # fmt: skip
    assert len(out.column("optim/lr")) == 3
    assert max(out.column("env/all/correct")) > 0.2
    apart = [abs(value) for value in out.column("optim/kl_sample_train_v1")]
    if way in ("sync", "streaming"):  # trained on its own samples: sampling and training agree
        assert max(apart) < 1e-5
    elif way == "ppo":  # the second half of a batch is of weights a step older
        assert 1e-5 < max(apart) < 0.1
    else:  # how far sampling lags behind is up to who is faster, and bounded
        assert max(apart) < 0.1
        oldest = out.column("sampling_client/step_min")
        assert all(step - 2 <= sampled <= step for step, sampled in enumerate(oldest))
    assert out.checkpoints[-1]["name"] == "final"
    asked = "loss_fn" not in options and DEFAULT_IS_STABLE
    assert out.column(REPLACED) == ([1.0] * 3 if asked else [])


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("sync", {"loss_fn": "stable_reinforce"}),
        ("async", {"loss_fn": "stable_reinforce", "max_steps_off_policy": 2}),
        (
            "streaming",
            {
                "loss_fn": "stable_reinforce",
                "stream_minibatch_config.groups_per_batch": 4,
                "stream_minibatch_config.num_minibatches": 2,
            },
        ),
    ],
)
def test_a_loss_that_is_not_there_is_refused_before_anything_is_trained(
    tmp_path: Path, kitchen: Kitchen, way: str, options: dict[str, Any]
) -> None:
    with opened(tmp_path, {HUB_NAME: NANO}, {}) as bare:
        status, said, left = bare.try_to(
            f"refused_{way}", "math_rl.train", **{**COMMON, "model_name": NANO}, lora_rank=2,
            env="arithmetic", groups_per_batch=4, group_size=4, max_tokens=4, max_steps=3,
            eval_every=0, **options,
        )  # fmt: skip
    assert status == 1
    assert "no loss 'stable_reinforce'" in said
    assert "ptl serve --substitute stable_reinforce=ppo" in said
    assert left.metrics == []
    assert {saved["name"] for saved in left.checkpoints} <= {"000000"}  # the start, if any


@pytest.fixture(scope="module")
def guesser(kitchen: Kitchen, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    path = write_chat(tmp_path_factory.mktemp("chat") / "guesses.jsonl", guesses(128))
    return kitchen.cook(
        "chat_sl", "chat_sl.train", **{**COMMON, "learning_rate": 5e-3}, lora_rank=8, dataset=path,
        batch_size=16, max_length=256, save_every=4,
    )  # fmt: skip


def test_chat_sl_learns_a_file(guesser: Outcome) -> None:
    loss = guesser.column("train_mean_nll")
    assert len(loss) == 8
    assert loss[-1] < 0.5 * loss[0]


def test_guess_number_trains_on_whole_conversations(kitchen: Kitchen, guesser: Outcome) -> None:
    out = kitchen.cook(
        "guess", "multiplayer_rl.guess_number.train", start=guesser.checkpoints[-1], **COMMON,
        group_size=2, batch_size=1, max_tokens=8, max_steps=2, eval_every=0, save_every=0,
    )  # fmt: skip
    assert max(out.column("env/all/turns_per_episode")) > 5
    assert max(abs(value) for value in out.column("optim/kl_sample_train_v1")) < 1e-5
    assert len(out.column("grad_norm:mean")) == 2


def test_dpo_starts_at_its_reference_and_leaves_it(kitchen: Kitchen) -> None:
    out = kitchen.cook(
        "dpo", "preference.dpo.train", **COMMON, dataset="hhh", batch_size=16, max_length=256,
        max_steps=3,
    )  # fmt: skip
    loss = out.column("dpo_loss")
    assert loss[0] == pytest.approx(0.693147, abs=1e-4)
    assert loss[-1] < 0.6
    assert out.column("accuracy")[-1] > 0.9


def test_a_student_nears_its_teacher(kitchen: Kitchen, boxed: Outcome) -> None:
    out = kitchen.cook(
        "distilled", "distillation.on_policy_distillation",
        **{**COMMON, "learning_rate": 3e-3}, lora_rank=8, dataset="deepmath",
        teacher_model=TINY, teacher_checkpoint=boxed.checkpoints[-1]["sampler_path"],
        groups_per_batch=4, group_size=4, max_tokens=16, max_steps=4, eval_every=0, save_every=2,
    )  # fmt: skip
    apart = out.column("teacher_kl")
    assert apart[0] > 0.5
    assert min(apart[1:]) < apart[0]
    assert apart[-1] < apart[0]

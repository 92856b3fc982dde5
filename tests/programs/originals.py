"""Records what the originals ask, where their packages are: `python -m tests.programs.originals
PROGRAM`.

`cookbook_rl_loop`, `litellm_provider` and `inspect_provider` need tinker-cookbook 0.6.1 with
litellm and inspect-ai; `axolotl_trainers` the directory of an unpacked wheel of axolotl, and
`twinkle_lora` the file of the example, each as the second word. What is kept was made with SDK
0.38.0: another one fills other fields, and has them made again.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from posttrain_recipes import models
from tests import cookbook_programs
from tests.cookbook_programs import HUB_NAME
from tests.programs.recorder import TOKEN, recording, written

HERE = Path(__file__).parent
NANO = models.resolve("ptl/nano")
TWINKLES = "Qwen/Qwen2.5-7B-Instruct"


def cookbook_rl_loop(where: str) -> None:
    """One batch. Of rewards every second is 1."""
    import tinker_cookbook.distillation.datasets  # noqa: F401 - `run` gives it data
    from tinker_cookbook.recipes.math_rl import math_grading

    marks = [0]

    def graded(*_: Any) -> bool:
        marks[0] += 1
        return bool(marks[0] % 2)

    cookbook_programs.seeded = lambda: None  # an original gives no seeds
    math_grading.extract_boxed = lambda text: text
    math_grading.grade_answer = graded
    options = {
        "model_name": HUB_NAME, "lora_rank": 4, "batch_size": 2, "group_size": 2,
        "max_tokens": 4, "max_steps": 1, "save_every": 0, "log_path": f"{where}/log",
    }  # fmt: skip
    cookbook_programs.run(
        "tinker_cookbook.recipes.rl_loop", options, NANO, f"{where}/said", dict(os.environ)
    )


def litellm_provider(_: str) -> None:
    """One reply."""
    import litellm
    from tinker_cookbook.third_party.litellm import register_litellm_provider
    from tinker_cookbook.tokenizer_utils import get_tokenizer, register_tokenizer

    register_tokenizer(HUB_NAME, lambda: get_tokenizer(NANO))
    register_litellm_provider()
    asyncio.run(
        litellm.acompletion(
            model="tinker/any",
            messages=[{"role": "user", "content": "Hello!"}],
            base_model=HUB_NAME,
            max_tokens=4,
        )
    )


def inspect_provider(_: str) -> None:
    """Two replies, of weights that were just saved."""
    import tinker
    from inspect_ai.model import ChatMessageUser, GenerateConfig
    from tinker_cookbook.eval.inspect_utils import InspectAPIFromTinkerSampling
    from tinker_cookbook.tokenizer_utils import get_tokenizer, register_tokenizer

    register_tokenizer(HUB_NAME, lambda: get_tokenizer(NANO))
    client = tinker.ServiceClient().create_lora_training_client(HUB_NAME, rank=4).result()
    path = client.save_weights_for_sampler("evaluated").result().path
    api = InspectAPIFromTinkerSampling("qwen3_instruct", HUB_NAME, model_path=path)
    config = GenerateConfig(max_tokens=4, num_choices=2, seed=1)
    asyncio.run(api.generate([ChatMessageUser(content="Hello!")], [], "auto", config))


def axolotl_trainers(wheel: str) -> None:
    """Two steps of SFT and one of GRPO."""
    import logging

    import torch
    from transformers import AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

    class Base:
        """What the two trainers use of Axolotl's, of Transformers' Trainer as a rule."""

        def __init__(self, rows: list[Any], steps: int) -> None:
            self.rows, self.processing_class = rows, AutoTokenizer.from_pretrained(NANO)
            self.args = TrainingArguments(
                output_dir=tempfile.mkdtemp(), max_steps=steps, use_cpu=True
            )
            self.state, self.control = TrainerState(), TrainerControl()
            self.callback_handler = self
            self._optim_params = {
                "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                "weight_decay": 0.0, "grad_clip_norm": 1.0,
            }  # fmt: skip

        def get_train_dataloader(self) -> list[Any]:
            return self.rows

        def log(self, _: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("on_"):
                return lambda args, state, control: control
            raise AttributeError(name)

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        made.__path__ = [str(Path(wheel, *name.split(".")))]
        vars(made).update(content)
        sys.modules[name] = made

    module("axolotl")
    module("axolotl.integrations")
    module("axolotl.integrations.hatchery")
    module("axolotl.core.trainers.base", AxolotlTrainer=Base)
    module("axolotl.utils.logging", get_logger=logging.getLogger)
    from axolotl.integrations.hatchery.args import HatcheryConfig
    from axolotl.integrations.hatchery.rl_trainer import HatcheryRLTrainer
    from axolotl.integrations.hatchery.trainer import HatcheryTrainer

    ids = torch.tensor([[5, 6, 7, 8]])
    for kind, options in (
        (HatcheryTrainer, {}),
        (HatcheryRLTrainer, {"loss_fn": "importance_sampling", "num_samples": 2,
                             "max_sample_tokens": 4}),
    ):  # fmt: skip
        trainer = kind([{"input_ids": ids, "labels": ids.clone()}] * 2, 2)
        trainer.hatchery_args = HatcheryConfig(lora_rank=4, **options)
        trainer._base_model_name = HUB_NAME
        trainer._reward_functions = [lambda prompts, replies: list(range(len(replies)))]
        trainer.train()


def twinkle_lora(file: str) -> None:
    """The example, twice: the second time it lists what the first left."""
    import tinker
    from transformers import AutoTokenizer

    class Nano:
        """`AutoTokenizer` that knows one tokenizer."""

        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            return AutoTokenizer.from_pretrained(NANO)

    for name, content in (
        ("dotenv", {"load_dotenv": lambda *_: None}),
        ("twinkle_client", {"init_tinker_compat_client": lambda **_: tinker.ServiceClient()}),
        ("modelscope", {"AutoTokenizer": Nano}),
    ):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    for _ in range(2):
        runpy.run_path(file, run_name="__main__")


def main() -> None:
    """Run a program in a process of its own against an engine that takes notes; keep them."""
    program, *more = sys.argv[1:]
    if "TINKER_API_KEY" in os.environ:
        globals()[program](*more)
        sys.stdout.flush()
        os._exit(0)
    with tempfile.TemporaryDirectory() as folder:
        where = more[0] if more else folder
        served = {HUB_NAME: NANO, TWINKLES: NANO}
        with recording(served, Path(folder) / "engine") as (address, recorder):
            environment = {
                **os.environ, "TINKER_BASE_URL": address, "TINKER_API_KEY": TOKEN,
                "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1",
            }  # fmt: skip
            command = [sys.executable, "-m", "tests.programs.originals", program, where]
            status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            said = Path(folder, "said")
            sys.exit(said.read_text(encoding="utf-8") if said.exists() else status)
        target = HERE / "recordings" / f"{program}.json"
        lines = ",\n".join(f" {json.dumps(row)}" for row in written(recorder.asked))
        target.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()

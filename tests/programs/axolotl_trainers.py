"""Axolotl's trainers that leave the computing to Tinker: SFT and GRPO.

Origin: https://github.com/axolotl-ai-cloud/axolotl, wheel axolotl 0.19.0,
axolotl/integrations/hatchery/{trainer,rl_trainer,data}.py. Its recording is of these three files,
on a base class that holds nothing but a data loader: Axolotl's own needs a GPU's packages.
"""

from __future__ import annotations

from typing import Any

import tinker
import torch
from tinker import types

ADAM = {
    "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
    "weight_decay": 0.0, "grad_clip_norm": 1.0,
}  # fmt: skip


def tensor(values: torch.Tensor) -> types.TensorData:
    kind: Any = "int64" if values.dtype == torch.int64 else "float32"
    return types.TensorData(data=values.tolist(), dtype=kind, shape=list(values.shape))


def client_of(base_model: str) -> Any:
    return tinker.ServiceClient(project_id=None).create_lora_training_client(
        base_model=base_model, rank=4, train_mlp=True, train_attn=True, train_unembed=True
    )


def sft(base_model: str) -> None:
    client = client_of(base_model)
    for row in ([5, 6, 7, 8], [9, 8, 7, 6]):
        ids = torch.tensor(row)
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1]),
            loss_fn_inputs={
                "target_tokens": tensor(ids[1:]), "weights": tensor(torch.ones(len(row) - 1))
            },
        )  # fmt: skip
        client.forward_backward([datum], loss_fn="cross_entropy", loss_fn_config=None).result()
        client.optim_step(types.AdamParams(**ADAM))
    client.save_state("final").result()


def rl(base_model: str) -> None:
    client = client_of(base_model)
    sampler = client.save_weights_and_get_sampling_client()  # a future that acts as the client
    prompt = [5, 6, 7]
    answer = sampler.sample(
        prompt=types.ModelInput.from_ints(prompt),
        num_samples=2,
        sampling_params=types.SamplingParams(max_tokens=4, temperature=1.0, top_p=0.95, top_k=-1),
    ).result()
    for sequence, advantage in zip(answer.sequences, (1.0, -1.0), strict=True):
        tokens, before = [*prompt, *sequence.tokens], len(prompt) - 1
        count = len(sequence.tokens)
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": tensor(torch.tensor(tokens[1:])),
                "logprobs": tensor(torch.tensor([0.0] * before + list(sequence.logprobs or []))),
                "advantages": tensor(torch.tensor([0.0] * before + [advantage] * count)),
            },
        )
        client.forward_backward(
            [datum], loss_fn="importance_sampling", loss_fn_config=None
        ).result()
    client.optim_step(types.AdamParams(**ADAM)).result()
    client.save_state("final").result()


def main(base_model: str) -> None:
    sft(base_model)
    rl(base_model)

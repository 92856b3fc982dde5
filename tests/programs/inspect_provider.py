"""tinker-cookbook's provider for Inspect: several replies of saved weights.

Origin: tinker-cookbook 0.6.1, tinker_cookbook/eval/inspect_utils.py
(https://github.com/thinking-machines-lab/tinker-cookbook). Its recording is of `generate` of that
provider, with a seed, for weights that were just saved.
"""

from __future__ import annotations

import asyncio

import tinker


def main(base_model: str) -> None:
    client = tinker.ServiceClient().create_lora_training_client(base_model, rank=4).result()
    path = client.save_weights_for_sampler("evaluated").result().path
    sampler = tinker.ServiceClient().create_sampling_client(model_path=path).result()

    async def generate() -> None:
        answer = await sampler.sample_async(
            prompt=tinker.ModelInput.from_ints([5, 6, 7]),
            num_samples=2,
            sampling_params=tinker.SamplingParams(
                temperature=1.0, max_tokens=4, top_p=1.0, top_k=-1, stop=[2], seed=1
            ),
        )
        assert len(answer.sequences) == 2

    asyncio.run(generate())

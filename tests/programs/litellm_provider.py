"""tinker-cookbook's provider for LiteLLM: a chat through a base model.

Origin: tinker-cookbook 0.6.1, tinker_cookbook/third_party/litellm/provider.py
(https://github.com/thinking-machines-lab/tinker-cookbook). Its recording is of
`litellm.acompletion` with that provider registered.
"""

from __future__ import annotations

import asyncio

import tinker


def main(base_model: str) -> None:
    sampler = tinker.ServiceClient().create_sampling_client(base_model=base_model).result()

    async def complete() -> None:
        answer = await sampler.sample_async(
            prompt=tinker.ModelInput.from_ints([5, 6, 7]),
            num_samples=1,
            sampling_params=tinker.SamplingParams(
                temperature=1.0, max_tokens=4, top_p=1.0, top_k=-1, stop=[2]
            ),
        )
        assert answer.sequences[0].logprobs is not None

    asyncio.run(complete())

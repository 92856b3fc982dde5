"""The loop of GRPO that tinker-cookbook 0.6 shows first, with the provenance of its samples.

Origin: tinker-cookbook 0.6.1, tinker_cookbook/recipes/rl_loop.py
(https://github.com/thinking-machines-lab/tinker-cookbook). Its recording is of that program, with
rows made up in GSM8K's form and rewards that differ within a group.
"""

from __future__ import annotations

import tinker
from tinker import types


def main(base_model: str) -> None:
    service = tinker.ServiceClient(user_metadata={"recipe": "rl_loop"}, display_name="rl-loop")
    client = service.create_lora_training_client(base_model=base_model, rank=4).result()
    params = types.SamplingParams(max_tokens=4, stop=[2])
    adam = types.AdamParams(learning_rate=4e-5, beta1=0.9, beta2=0.95, eps=1e-8)
    sampler = client.save_weights_and_get_sampling_client(record_stability_info=True).result()
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    asked = [sampler.sample(prompt=prompt, num_samples=2, sampling_params=params) for _ in "ab"]
    data = []
    for future in asked:
        for advantage, sequence in zip((0.5, -0.5), future.result().sequences, strict=True):
            tokens, before = sequence.tokens, prompt.length - 1
            count, name = len(tokens), sequence.sequence_id
            datum = types.Datum(
                model_input=prompt.append(types.EncodedTextChunk(tokens=tokens[:-1])),
                loss_fn_inputs={
                    "target_tokens": [0] * before + tokens,
                    "logprobs": [0.0] * before + list(sequence.logprobs or []),
                    "advantages": [0.0] * before + [advantage] * count,
                },
            )
            own, sampled = types.PromptProvenanceSpan, types.SampledProvenanceSpan
            data.append(
                datum.with_provenance(
                    model_input=[
                        own(sequence_id=name, length=prompt.length),
                        sampled(sequence_id=name, length=count - 1),
                    ],
                    loss_fn_inputs=[
                        own(sequence_id=name, offset=1, length=before),
                        sampled(sequence_id=name, length=count),
                    ],
                )
            )
    passed = client.forward_backward(data, loss_fn="stable_reinforce")
    stepped = client.optim_step(adam)
    passed.result()
    stepped.result()
    saved = [
        client.save_state("final", ttl_seconds=None),
        client.save_weights_for_sampler("final", ttl_seconds=None),
    ]
    for future in saved:
        future.result()

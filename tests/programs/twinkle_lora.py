"""ModelScope Twinkle's LoRA example for Tinker's client.

Origin: https://github.com/modelscope/twinkle, cookbook/client/tinker/lora.py, commit 3cc2189f7b9d.
Its recording is of that file, run twice with two names replaced: Twinkle's
`init_tinker_compat_client` by `tinker.ServiceClient`, and ModelScope's `AutoTokenizer` by that of
transformers.
"""

from __future__ import annotations

import tinker
from tinker import types


def main(base_model: str) -> None:
    for _ in range(2):  # the second time there are runs to list
        example(base_model)


def example(base_model: str) -> None:
    service = tinker.ServiceClient()
    assert service.get_server_capabilities().supported_models
    rest = service.create_rest_client()
    for run in rest.list_training_runs(limit=50).result().training_runs:
        rest.list_checkpoints(run.training_run_id).result()
    client = service.create_lora_training_client(base_model=base_model)
    tokenizer = client.get_tokenizer()
    data = []
    for english, latin in [("banana split", "anana-bay plit-say"), ("pickle jar", "ickle-pay ar")]:
        prompt = tokenizer.encode(f"English: {english}\nPig Latin:")
        reply = tokenizer.encode(f" {latin}\n\n")
        tokens = prompt + reply
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={
                    "weights": ([0] * len(prompt) + [1] * len(reply))[1:],
                    "target_tokens": tokens[1:],
                },
            )
        )
    for epoch in range(2):
        passed = client.forward_backward(data, "cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=1e-4))
        passed.result()
        stepped.result()
        saved = client.save_state(f"pig-latin-lora-epoch-{epoch}").result()
    rest.publish_checkpoint_from_tinker_path(saved.path).result()

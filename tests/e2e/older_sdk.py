"""A small Tinker program in what SDKs from 0.25 on share. Run by test_older_sdks.py, which gives
the directory that the SDK has to come from."""

import sys

import tinker
from tinker import types

assert tinker.__file__ is not None
assert tinker.__file__.startswith(sys.argv[1]), tinker.__file__


def got(answer):  # type: ignore[no-untyped-def]
    """What a method gives: some return a future in one version and the value in another."""
    return answer.result() if hasattr(answer, "result") else answer


def tensor(data, dtype):  # type: ignore[no-untyped-def]
    """A list as the wire has it."""
    return types.TensorData(data=data, dtype=dtype, shape=[len(data)])


service = tinker.ServiceClient()
(served,) = got(service.get_server_capabilities()).supported_models
client = got(service.create_lora_training_client(base_model=served.model_name, rank=4, seed=0))
inputs = {
    "target_tokens": tensor([6, 7, 8, 9], "int64"),
    "weights": tensor([1.0] * 4, "float32"),
}
prompt = types.ModelInput.from_ints([5, 6, 7, 8])
datum = types.Datum(model_input=prompt, loss_fn_inputs=inputs)

losses = []
for _ in range(3):
    passed = client.forward_backward([datum], "cross_entropy")
    client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    losses.append(passed.result().metrics["loss:sum"])
assert losses[2] < losses[0], losses


def negative(data, logprobs):  # type: ignore[no-untyped-def]
    """A custom loss."""
    loss = -sum(one.sum() for one in logprobs)
    return loss, {"mine": float(loss)}


assert client.forward_backward_custom([datum], negative).result().metrics["mine"] > 0
path = got(client.save_state("a")).path
sampler = got(client.save_weights_and_get_sampling_client(name="b"))
plan = types.SamplingParams(max_tokens=5, seed=1, stop=[])
found = got(sampler.sample(prompt=prompt, num_samples=2, sampling_params=plan))
assert [len(sequence.tokens) for sequence in found.sequences] == [5, 5]
assert len(got(sampler.compute_logprobs(prompt))) == 4
again = got(service.create_training_client_from_state(path))
again.forward_backward([datum], "cross_entropy").result()
assert got(service.create_rest_client().list_training_runs()).training_runs
print("all of it")

"""`ptl serve`, as another program meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
import tinker


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "posttrain_recipes.cli", "serve", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_lines_it_prints_are_all_that_a_program_needs(tmp_path: Path) -> None:
    process = serve("--port", "0", "--home", str(tmp_path))
    exported = read_exports(process)
    service = tinker.ServiceClient(
        base_url=exported["TINKER_BASE_URL"], api_key=exported["TINKER_API_KEY"]
    )
    sampler = service.create_sampling_client(base_model="ptl/nano").result()
    params = tinker.SamplingParams(max_tokens=3, seed=0, stop=[])
    answer = sampler.sample(tinker.ModelInput.from_ints([5, 6, 7]), 2, params).result()
    assert [len(sequence.tokens) for sequence in answer.sequences] == [3, 3]
    by_place = service.create_sampling_client(base_model=exported["ptl/nano"]).result()
    same = by_place.sample(tinker.ModelInput.from_ints([5, 6, 7]), 2, params).result()
    assert [s.tokens for s in same.sequences] == [s.tokens for s in answer.sequences]
    assert by_place.get_tokenizer().decode(by_place.get_tokenizer().encode("hello")) == "hello"
    with openai.OpenAI(
        base_url=exported["OPENAI_BASE_URL"], api_key=exported["OPENAI_API_KEY"]
    ) as client:
        assert [model.id for model in client.models.list()] == ["ptl/tiny", "ptl/nano"]
    training = service.create_lora_training_client("ptl/nano", rank=2).result()
    datum = tinker.Datum(tinker.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})
    training.forward_backward([datum] * 4, "cross_entropy").result()
    training.optim_step(tinker.AdamParams()).result()
    lines = metrics(exported)
    for line in ("ptl_tokens_trained_total 12", "ptl_tokens_sampled_total 12", "ptl_adapters 1",
                 'ptl_work_seconds_count{operation="forward_backward"} 1'):  # fmt: skip
        assert line in lines

    # Asked to stop, it finishes what it has taken, and the answer is fetched.
    long = sampler.sample(tinker.ModelInput.from_ints([5]), 64, LONG)
    while "ptl_busy 1" not in metrics(exported):
        pass
    process.send_signal(signal.SIGTERM)
    assert len(long.result(60).sequences) == 64
    assert process.wait(60) == 0
    assert process.stderr is not None
    log = process.stderr.read()
    assert "POST /api/v1/forward_backward 200" in log
    assert "retrieve_future" not in log
    assert "Traceback" not in log
    assert exported["TINKER_API_KEY"] not in log


def sampled_datum(sampler: tinker.SamplingClient, prompt: list[int]) -> tinker.Datum:
    """A sampled sequence with its provenance, as tinker-cookbook's rl_loop makes it."""
    params = tinker.SamplingParams(max_tokens=4, seed=0, stop=[])
    answer = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result()
    (sequence,) = answer.sequences
    tokens, name, before = [*prompt, *sequence.tokens], sequence.sequence_id, len(prompt)
    made = tinker.Datum(
        tinker.ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": tokens[1:],
            "logprobs": [0.0] * (before - 1) + list(sequence.logprobs or []),
            "advantages": [0.0] * (before - 1) + [1.0, -1.0, 0.5, 2.0],
        },
    )
    prompt_span, sampled_span = tinker.PromptProvenanceSpan, tinker.SampledProvenanceSpan
    return made.with_provenance(
        model_input=[
            prompt_span(sequence_id=name, length=before),
            sampled_span(sequence_id=name, length=3),
        ],
        loss_fn_inputs=[
            prompt_span(sequence_id=name, offset=1, length=before - 1),
            sampled_span(sequence_id=name, length=4),
        ],
    )


@pytest.mark.nightly
def test_a_loss_that_is_not_public_is_refused_or_replaced_aloud(tmp_path: Path) -> None:
    for options, replaced in (((), False), (("--substitute", "stable_reinforce=ppo"), True)):
        process = serve("--port", "0", "--home", str(tmp_path), "--model", "ptl/nano", *options)
        exported = read_exports(process)
        service = tinker.ServiceClient(
            base_url=exported["TINKER_BASE_URL"], api_key=exported["TINKER_API_KEY"]
        )
        client = service.create_lora_training_client("ptl/nano", rank=2).result()
        sampler = client.save_weights_and_get_sampling_client(record_stability_info=True).result()
        datum = sampled_datum(sampler, [5, 6, 7])
        passed = client.forward_backward([datum], "stable_reinforce")
        if replaced:
            out = passed.result()
            assert out.metrics["stable_reinforce_replaced_by_ppo:max"] == 1.0
            step = client.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
            assert step.metrics["stable_reinforce_replaced_by_ppo:max"] == 1.0
            ppo = client.forward_backward([datum], "ppo").result()
            assert out.metrics["loss:sum"] == ppo.metrics["loss:sum"] != 0.0
            assert "stable_reinforce_replaced_by_ppo:max" not in ppo.metrics
            step = client.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
            assert "stable_reinforce_replaced_by_ppo:max" not in step.metrics
            plain = client.save_weights_and_get_sampling_client().result()
            unknown = client.forward_backward([sampled_datum(plain, [5, 6])], "stable_reinforce")
            with pytest.raises(tinker.TinkerError, match="nothing is on record"):
                unknown.result()
        else:
            with pytest.raises(tinker.TinkerError, match="serve --substitute stable_reinforce=ppo"):
                passed.result()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert (
            "stable_reinforce is asked for, ppo is computed" in process.stderr.read()
        ) == replaced


def test_a_substitute_that_there_is_not_is_said_so(tmp_path: Path) -> None:
    for given in ("ppo=cispo", "stable_reinforce=gspo", "stable_reinforce"):
        process = serve("--substitute", given, "--home", str(tmp_path))
        _, error = process.communicate(timeout=30)
        assert process.returncode == 2
        assert f"--substitute {given}" in error
        assert "stable_reinforce=ppo" in error


LONG = tinker.SamplingParams(max_tokens=100, stop=[])


def read_exports(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    exported: dict[str, str] = {}
    while "OPENAI_API_KEY" not in exported:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        if line.strip().startswith("export "):
            words = line.split()[1:]
            exported |= dict(word.split("=", 1) for word in words)
        elif " is /" in line:
            name, where = line.strip().split(" is ")
            exported[name] = where
    return exported


def metrics(exported: dict[str, str]) -> list[str]:
    request = urllib.request.Request(
        f"{exported['TINKER_BASE_URL']}/metrics", headers={"X-API-Key": exported["TINKER_API_KEY"]}
    )
    text: str = urllib.request.urlopen(request, timeout=30).read().decode()
    return text.splitlines()


def test_another_machine_needs_a_token_of_ones_own(tmp_path: Path) -> None:
    process = serve("--host", "0.0.0.0", "--home", str(tmp_path))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "--host 0.0.0.0 is reachable from other machines" in error


def test_a_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve("--port", str(port), "--home", str(tmp_path))
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot serve on 127.0.0.1:{port}" in error
    assert "Traceback" not in error

"""Capability checks of checkpoints: saving, loading, listing, deleting."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from posttrain_recipes.probe.bench import Bench, Checks, UnsupportedError, agree, differ, expect

check = Checks()


@check("save", "save weights and optimizer", "forward")
def save(bench: Bench) -> None:
    """Its answer is the checkpoint's path."""
    path = bench.save(bench.trained, "save")
    expect(path.startswith("tinker://"), f"it is called {path!r}")


@check("load", "make a trainer of saved weights", "save")
def load(bench: Bench) -> None:
    """It has the weights, and can be trained."""
    client = bench.resume(bench.save(bench.trained, "load"), optimizer=False)
    before = bench.logprobs(client)
    agree(before, bench.logprobs(bench.trained), "it has other weights")
    bench.step(client, [bench.datum(5)])
    differ(bench.logprobs(client), before, "it cannot be trained")


@check("load:optimizer", "make a trainer of saved weights and optimizer", "save")
def load_optimizer(bench: Bench) -> None:
    """A step after loading is the step that would have come."""
    client = bench.trainer()
    bench.step(client, [bench.datum()])
    path = bench.save(client, "optimizer")
    ends = []
    for optimizer in (None, True, False):
        one = client if optimizer is None else bench.resume(path, optimizer=optimizer)
        bench.step(one, [bench.datum(5)])
        ends.append(bench.logprobs(one))
        bench.release()
    agree(ends[1], ends[0], "the next step is another one")
    differ(ends[2], ends[0], "weights alone go on as if the optimizer had been kept")


@check("load:in_place", "load into a trainer that is there", "load:optimizer")
def load_in_place(bench: Bench) -> None:
    """Back to what was saved."""
    client = bench.trainer()
    bench.step(client, [bench.datum()])
    saved, path = bench.logprobs(client), bench.save(client, "place")
    bench.step(client, [bench.datum(5)])
    differ(bench.logprobs(client), saved, "a step moved nothing")
    bench.wait(client.load_state_with_optimizer(path))
    agree(bench.logprobs(client), saved, "it did not go back to what was saved")


@check("save:sampler", "save weights to sample from, and sample from them", "save", "sample")
def save_sampler(bench: Bench) -> None:
    """A sampler made from the path has the trained weights."""
    saved = bench.wait(bench.trained.save_weights_for_sampler(bench.name("sampler")))
    bench.saved.append(saved.path)
    sampler = bench.wait(bench.service.create_sampling_client(model_path=saved.path))
    values = bench.wait(sampler.compute_logprobs(bench.prompt()))
    want = bench.logprobs(bench.trained)[:7]
    agree(list(values[1:]), want, "it has other weights than the trainer")


@check("checkpoints:info", "ask what a checkpoint holds", "save")
def info(bench: Bench) -> None:
    """Its base model and rank."""
    path = bench.save(bench.trained, "info")
    found = bench.wait(bench.rest.get_weights_info_by_tinker_path(path))
    expect(found.base_model == bench.model, f"its base model is said to be {found.base_model}")


def _listed(bench: Bench, path: str) -> Any:
    run = path.removeprefix("tinker://").split("/")[0]
    found = bench.wait(bench.rest.list_checkpoints(run)).checkpoints
    return next((one for one in found if one.tinker_path == path), None)


@check("checkpoints:list", "list a run's checkpoints", "save")
def listing(bench: Bench) -> None:
    """The one just saved is there."""
    path = bench.save(bench.trained, "list")
    expect(_listed(bench, path) is not None, "what was just saved is not listed")


@check("checkpoints:ttl", "let a checkpoint expire", "checkpoints:list")
def ttl(bench: Bench) -> None:
    """Two hours from now, and then never."""
    path = bench.save(bench.trained, "ttl")
    bench.wait(bench.rest.set_checkpoint_ttl_from_tinker_path(path, 7200))
    expires = _listed(bench, path).expires_at
    expect(expires is not None, "no expiry is listed")
    hours = (expires - datetime.now(UTC)).total_seconds() / 3600
    expect(1.9 < hours < 2.1, f"it expires in {hours:.1f} hours, not in 2")
    bench.wait(bench.rest.set_checkpoint_ttl_from_tinker_path(path, None))
    expect(_listed(bench, path).expires_at is None, "the expiry could not be taken back")


@check("checkpoints:delete", "delete a checkpoint", "checkpoints:list", "checkpoints:info")
def delete(bench: Bench) -> None:
    """It is listed no more, and cannot be loaded."""
    path = bench.save(bench.trained, "delete")
    bench.wait(bench.rest.delete_checkpoint_from_tinker_path(path))
    expect(_listed(bench, path) is None, "it is listed still")
    try:
        bench.wait(bench.rest.get_weights_info_by_tinker_path(path))
    except TimeoutError:
        raise
    except Exception:
        return
    raise UnsupportedError("it can be read still")


@check("checkpoints:overwrite", "save again under the same name, if told to", "save")
def overwrite(bench: Bench) -> None:
    """Not otherwise."""
    path = bench.save(bench.trained, "again")
    name = path.split("/")[-1]
    bench.wait(bench.trained.save_state(name, overwrite=True))
    try:
        bench.wait(bench.trained.save_state(name))
    except TimeoutError:
        raise
    except Exception:
        return
    raise UnsupportedError("it wrote over a checkpoint unasked")


@check("checkpoints:publish", "publish a checkpoint, and take that back", "checkpoints:list")
def publish(bench: Bench) -> None:
    """The listing says so."""
    path = bench.save(bench.trained, "publish")
    bench.wait(bench.rest.publish_checkpoint_from_tinker_path(path))
    expect(_listed(bench, path).public, "it is not listed as public")
    bench.wait(bench.rest.unpublish_checkpoint_from_tinker_path(path))
    expect(not _listed(bench, path).public, "it is listed as public still")


@check("checkpoints:copy", "copy a checkpoint, which outlives the original", "checkpoints:delete")
def copy(bench: Bench) -> None:
    """The copy has the weights after the original is gone."""
    path = bench.save(bench.trained, "copy")
    copied = str(bench.wait(bench.rest.copy_weights(path, "probe")))
    bench.saved.append(copied)
    expect(copied != path, "it is called as the original is")
    bench.wait(bench.rest.delete_checkpoint_from_tinker_path(path))
    client = bench.resume(copied, optimizer=False)
    agree(bench.logprobs(client), bench.logprobs(bench.trained), "it has other weights")


@check("checkpoints:download", "get addresses to download an adapter from", "save")
def download(bench: Bench) -> str:
    """One for each file of an adapter as PEFT writes it."""
    saved = bench.wait(
        bench.trained.save_weights_external(bench.name("download"), ttl_seconds=3600)
    )
    bench.saved.append(str(saved.path))
    files = sorted(bench.wait(bench.rest.get_external_weights_urls(saved.path)).urls)
    expect(any(name.endswith(".safetensors") for name in files), f"it offers {files}")
    return ", ".join(files)


@check("runs:list", "list training runs", "train")
def runs(bench: Bench) -> None:
    """The run just begun is there, and can be asked for."""
    run = bench.trained.model_id
    found = bench.wait(bench.rest.list_training_runs(limit=100)).training_runs
    expect(run in [one.training_run_id for one in found], "a run just begun is not listed")
    one = bench.wait(bench.rest.get_training_run(run))
    expect(one.base_model == bench.model, f"its base model is said to be {one.base_model}")


@check("sessions:list", "list sessions", "train")
def sessions(bench: Bench) -> None:
    """The training run's own session is there."""
    session = bench.trained.model_id.split(":")[0]
    found = bench.wait(bench.rest.list_sessions(limit=100)).sessions
    expect(session in list(found), "this session is not listed")

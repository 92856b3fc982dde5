"""An adapter that a method trains beside its policy: saved, resumed and deleted with it."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import Checkpoint, Resume, StageContext
from posttrain_recipes.running import collect
from tests.rollout_engine import ROOM, Engine, run
from tests.unit.test_collect import finished, pair, record, stopped, stored, uri, uris


class Service(Engine):
    """One that trains two adapters: the policy first, and a critic."""

    def __init__(self, name: str = "a") -> None:
        super().__init__(run=name)
        self.critic = Engine(run=f"{name}-critic")
        self.seeds: list[int] = []

    def create_lora_training_client(self, **options: Any) -> Future[Any]:
        self.seeds.append(options["seed"])
        return super().create_lora_training_client() if len(self.seeds) == 1 else self._critic()

    def create_training_client_from_state_with_optimizer(self, path: str) -> Future[Any]:
        if "critic" not in path:
            return super().create_training_client_from_state_with_optimizer(path)
        return self.critic.create_training_client_from_state_with_optimizer(path)

    def _critic(self) -> Future[Any]:
        return self.critic.create_lora_training_client()


class Beside(GRPO):
    """grpo, whose critic takes a step before the policy does."""

    trains_beside = ("critic",)

    def train(self, stage: StageContext) -> Checkpoint:
        with self.loop(stage) as loop:
            for step in loop:
                for groups in step.groups():
                    for group in groups:
                        advantages = self.config.estimate(group, step.batch)
                        group.weigh(advantages, [1.0] * len(group.scored), step.size)
                    step.passes += self.learn(loop.client, groups)
                stage.wait(loop.beside["critic"].optim_step(None))
                step.metrics["critic/groups"] = len(step.learned)
                step.update()
        return loop.checkpoint


def together(engine: Service) -> None:
    """Every checkpoint is of one step of both."""
    for resume in engine.kept:
        policy, critic = resume.state_uri, resume.beside["critic"]
        assert critic.startswith(f"tinker://{engine.critic.run}/")
        assert policy.rsplit("-", 1)[1] == critic.rsplit("-", 1)[1] == str(resume.step)


def test_it_is_saved_with_every_checkpoint_and_has_a_seed_of_its_own() -> None:
    engine = Service()
    run(engine, kind=Beside, save_every=1)
    assert len(set(engine.seeds)) == 2
    assert [resume.step for resume in engine.kept] == [1, 2, 3]
    together(engine)
    assert [metrics["critic/groups"] for metrics, _ in engine.log] == [4, 4, 2]


@pytest.mark.parametrize("options", [{}, {"updates_per_batch": 2}])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PtlError])
def test_what_ends_a_stage_between_the_two_leaves_a_checkpoint_of_whole_steps(
    error: type[BaseException], options: dict[str, Any]
) -> None:
    for stop in range(1, 6):
        engine = Service()

        def wait(future: Future[Any], engine: Service = engine, stop: int = stop) -> Any:
            if engine.critic.version == stop > engine.version:
                engine.critic.version += 100  # never again
                raise error("stopped")
            return future.result(ROOM)

        with pytest.raises(error):
            run(engine, kind=Beside, wait=wait, epochs=2, save_every=1, **options)
        together(engine)
        per = options.get("updates_per_batch", 1)
        assert engine.kept[-1].step == (stop - 1) // per * per if engine.kept else stop <= per


def test_a_resumed_stage_goes_on_with_it() -> None:
    first, second = Service(), Service("b")
    run(first, kind=Beside, max_steps=2, save_every=1)
    run(second, kind=Beside, save_every=1, resume=first.kept[0])
    assert (second.version, second.critic.version) == (3, 3)
    assert [resume.step for resume in second.kept] == [2, 3]
    together(second)


def test_a_checkpoint_without_it_is_no_place_to_go_on_from() -> None:
    resume = Resume(1, "tinker://a/weights/s-1", "tinker://a/sampler_weights/s-1")
    with pytest.raises(PtlError, match="has no state of 'critic'"):
        run(Service(), kind=Beside, resume=resume)


def test_garbage_is_what_no_next_try_goes_on_from(tmp_path: Path) -> None:
    going, done = stopped("a", 4), finished("b")
    going.resume = Resume(4, *pair("a", 4), beside={"critic": uri("a-critic", 4)})
    done.resume = Resume(8, *pair("b", 8), beside={"critic": uri("b-critic", 8)})
    there = stored(*pair("a", 4), uri("a-critic", 4), *pair("b", 8), uri("b-critic", 8))
    found = collect.find([record(1, "killed", going), record(2, "finished", done)], there, set())
    assert uris(found) == {uri("b-critic", 8)}

"""Weights on a running engine: samplers, start checkpoints, and the weights that options name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import RendererConfig, asked
from posttrain_recipes.planning.plans import (
    BASE,
    Plan,
    PlannedStage,
    model_identity,
    model_location,
)
from posttrain_recipes.plugin import (
    Checkpoint,
    Connection,
    ModelRef,
    Offer,
    OpenAIRoutes,
    ServedModel,
    ServedWeights,
    Waiter,
    checkpoint_name,
    sampling_client,
)
from posttrain_recipes.waiting import GoneError, RefusedError, in_thread, worker

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.training.text.chat_template import ChatRenderer


def locations(plan: Plan) -> Mapping[str, str]:
    """Where the weights of every base model of the plan are: directories and hub ids."""
    return {name: model_location(name, plan.path.parent) for name in plan.models}


@dataclass
class Serving:
    """Checkpoints, samplers and renderers of one run."""

    plan: Plan
    connection: Connection
    wait: Waiter
    data_dir: Path
    """Where an engine of this machine keeps checkpoints."""
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    """What each stage that is done ended in."""
    renderers: dict[tuple[str, str, str], ChatRenderer] = field(default_factory=dict)
    """By worker, as tokenizers are not safe to use from two at a time, model and options."""

    def renderer(self, model: str, options: RendererConfig | None = None) -> ChatRenderer:
        """The renderer of a base model. Raises `PtlError` where its tokenizer cannot be loaded."""
        from posttrain_recipes.training.text.chat_template import load_renderer

        options = options or self.plan.template_of(model)
        key = worker(), model, options.model_dump_json()
        if key not in self.renderers:
            location = model_location(model, self.plan.path.parent)
            offer = self.connection.offers.get(model, Offer())
            self.renderers[key] = load_renderer(location, options, offer.context)
        return self.renderers[key]

    def lost(self, uri: str) -> str | None:
        """Why a checkpoint cannot be used, in words that follow "its checkpoint"; None where
        nothing speaks against it."""
        if (why := self.plan.engine.lost(uri, self.data_dir)) is not None:
            return why
        try:
            self.wait(self.connection.rest.get_weights_info_by_tinker_path(uri))
        except GoneError:
            # Not every server tells of those that are sampled from.
            return None if "/sampler_weights/" in uri else "is gone"
        except RefusedError as error:
            return f"cannot be used: {error.why}"
        return None

    def sampler(self, checkpoint: Checkpoint) -> tinker.SamplingClient:
        """A client that samples from `checkpoint`."""
        return sampling_client(self.connection.service, checkpoint, self.wait)

    def served(self, checkpoint: Checkpoint) -> ServedWeights:
        """Where programs that know OpenAI's routes find `checkpoint`.

        Raises:
            PtlError: the engine has no such routes.
        """
        routes: OpenAIRoutes | None = self.wait(in_thread(self.connection.openai))
        if routes is None:
            raise PtlError(
                f"the engine ({self.plan.engine.identity}) has no OpenAI routes",
                why="an eval that calls a suite has it ask there",
                hint="take this eval out, or run on 'engine: local' or hosted Tinker, which have "
                "them",
                code="engine-cannot",
            )
        location = model_location(checkpoint.base_model, self.plan.path.parent)
        model = checkpoint.sampler_uri or checkpoint.base_model
        return ServedWeights(routes, model, location)

    def start(self, stage: PlannedStage, known: Checkpoint | None) -> Checkpoint:
        """The checkpoint that a stage starts from; `known` where an earlier try found it."""
        if stage.start == BASE:
            return Checkpoint(stage.model)
        if not stage.start.startswith("tinker://"):
            return self.checkpoints[stage.start]
        if known is not None:
            return known
        if "/sampler_weights/" in stage.start:
            return Checkpoint(stage.model, None, stage.start)
        # A state cannot be sampled from: make a sampler of the same weights.
        from_state = self.connection.service.create_training_client_from_state
        client: tinker.TrainingClient = self.wait(
            in_thread(lambda: from_state(stage.start).result())
        )
        sampler = self.wait(client.save_weights_for_sampler(f"{checkpoint_name(stage.name)}-start"))
        return Checkpoint(stage.model, stage.start, sampler.path)

    def resolve(self, ref: ModelRef, model: str, options: RendererConfig) -> ServedModel:
        """The weights that an option of a stage of `model` refers to, asked with `options` where
        the reference has none."""
        if ref.checkpoint:
            checkpoint = Checkpoint(self.base_of(ref.checkpoint), None, ref.checkpoint)
        elif ref.stage and ref.stage != BASE:
            checkpoint = self.checkpoints[ref.stage]
        else:
            checkpoint = Checkpoint(ref.model or model)
        base = checkpoint.base_model
        how = asked(ref.renderer, options, same=base == model)
        renderer = self.renderer(base, how)
        weights = checkpoint.sampler_uri or (
            self.plan.identities.get(base) or model_identity(base, self.plan.path.parent)
        )
        identity = f"{weights} {how.model_dump_json()}"
        return ServedModel(checkpoint, renderer, self.sampler(checkpoint), identity)

    def base_of(self, uri: str) -> str:
        """The base model of a checkpoint. Raises `GoneError` where the engine lacks it."""
        weights = self.wait(self.connection.rest.get_weights_info_by_tinker_path(uri))
        return str(weights.base_model)

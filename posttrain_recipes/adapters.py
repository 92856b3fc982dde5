"""Adapters of the embedded engine's checkpoints as arrays, read and written beside the engine.

An engine looks for a checkpoint's files when it is asked for one, so that one that is written here
while it runs is there like those that it saved itself. Tinker's protocol has no such thing: it
exports adapters and takes none back.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posttrain_recipes.context import LoraFactorPair, LoraUpdate
from posttrain_recipes.engine.storage.checkpoints import (
    ADAPTER_FILE,
    CheckpointPath,
    CheckpointRecord,
    CheckpointStore,
    TrainingRun,
    now,
    parse_path,
)
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.errors import PtlError
from posttrain_recipes.records import Checkpoint

CONFIG_FILE = "adapter_config.json"
A, B = ".lora_A.weight", ".lora_B.weight"


class AdapterStore:
    """The adapters of the engine whose checkpoints lie in a directory."""

    def __init__(self, data_dir: Path) -> None:
        self.store = CheckpointStore(data_dir)

    def read(self, uri: str) -> LoraUpdate:
        """What a checkpoint adds to its base model.

        Raises:
            PtlError: it is not there, or not what was saved.
        """
        try:
            kept = self.store.find(parse_path(uri))
            arrays, _ = self.store.load(kept)
            config = json.loads((kept.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except RequestError as error:
            raise PtlError(str(error), code="bad-checkpoint") from None
        scale = float(config["lora_alpha"]) / int(config["r"])
        layers = [name.removesuffix(A) for name in arrays if name.endswith(A)]
        return LoraUpdate(
            kept.record.base_model,
            {
                name: LoraFactorPair(_wide(arrays[name + A]), scale * _wide(arrays[name + B]))
                for name in layers
            },
        )

    def write(self, name: str, update: LoraUpdate, like: str, step: int) -> Checkpoint:
        """Save an adapter as a checkpoint of a training run of its own, to be trained on and
        sampled from.

        Args:
            name: of the checkpoint.
            update: every layer's factors, all of one rank.
            like: a checkpoint whose adapter is of the same layers.
            step: what is told of it.

        Raises:
            PtlError: it cannot be written.
        """
        (rank,) = {pair.a.shape[0] for pair in update.layers.values()}
        try:
            kept = self.store.find(parse_path(like))
            config = json.loads((kept.folder / CONFIG_FILE).read_text(encoding="utf-8"))
            alpha = float(config["lora_alpha"])
            run = f"{uuid.uuid4()}:train:0"
            lora = replace(kept.record.lora, rank=rank)
            base, session = kept.record.base_model, run.partition(":")[0]
            self.store.add_run(TrainingRun(run, session, base, lora, now()))
            arrays = dict(_named(update.layers, alpha / rank))

            def write(folder: Path) -> None:
                from safetensors.numpy import save_file

                save_file(arrays, folder / ADAPTER_FILE, metadata={"format": "pt"})
                text = json.dumps({**config, "r": rank}, indent=2, sort_keys=True)
                (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

            paths = [CheckpointPath(run, kind, name) for kind in ("weights", "sampler_weights")]
            for path in paths:
                record = CheckpointRecord(str(path), base, lora, step, now())
                self.store.save(path, record, write, overwrite=False)
        except RequestError as error:
            raise PtlError(str(error), code="bad-checkpoint") from None
        return Checkpoint(base, str(paths[0]), str(paths[1]), step)


def _wide(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def _named(
    layers: Mapping[str, LoraFactorPair], scale: float
) -> list[tuple[str, NDArray[np.float32]]]:
    """By PEFT's names, whose update is scale B A."""
    return [
        (name + end, np.ascontiguousarray(value, np.float32))
        for name, pair in layers.items()
        for end, value in ((A, pair.a), (B, pair.b / scale))
    ]

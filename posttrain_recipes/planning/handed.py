"""As what a dataset's records are handed over to a method or an eval; and what stands in for a
dataset where an eval calls a suite that has data of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain_recipes.conversion import can_become
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.language.recipe import environment_names
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.building import Builder
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.plugin import Dataset, DatasetConfig, Eval, Method, Record


def over(builder: Builder, dataset: Dataset, consumer: Method | Eval, key: Key) -> type[Record]:
    """The type that the dataset's records are handed to `consumer` as; `Record` where it takes
    none."""
    if not consumer.takes:
        return Record
    have = dataset.record_type()
    if names := dataset.reads():
        stage = builder.above.get(names[0])
        made = stage.method.collects() if stage and stage.method else ()
        fitting = [t for t in made if can_become(t, consumer.takes)]
        have = next(iter(fitting or made), None)
    if have is None:
        return consumer.takes[0]
    wanted = can_become(have, consumer.takes)
    if wanted is None:
        kind = "method" if isinstance(consumer, Method) else "eval"
        takes = " or ".join(f"{t.__name__} records" for t in consumer.takes)
        builder.fault(
            key,
            f"has {have.__name__} records, and {kind} '{consumer.name}' takes {takes}; "
            f"{_example(consumer.takes[0])}",
        )
        return consumer.takes[0]
    return wanted


_FIELDS = {
    "Conversation": "'messages', or 'prompt' and 'completion'",
    "Prompt": "'prompt' and 'answer', or 'question' and 'answer'",
    "Preference": "'prompt', 'chosen' and 'rejected'",
    "Labelled": "'prompt', 'completion' and 'label'",
}
"""What a file of each type has; a `Task` is of an environment, never in a file."""


def _example(record_type: type[Record]) -> str:
    fields = _FIELDS.get(record_type.__name__)
    return f"those have the fields {fields}" if fields else "those come from an environment"


class OfSuite(Dataset):
    """The data of a suite, of which no record is read here."""

    name = "suite"

    def __init__(self, called: Eval) -> None:
        super().__init__(DatasetConfig(), called.base_dir)
        self.called = called

    def digest(self) -> str | None:
        """What the eval says that its suite's data depend on."""
        return self.called.digest()

    def record_type(self) -> type[Record]:
        return Record

    def size(self) -> int:
        return 0

    def load(self) -> Iterable[Record]:
        return ()


def to_suite(builder: Builder, plugin: Eval, spec: Mapping[str, Any], key: Key) -> Data:
    """What stands in for the data of an eval that takes no records."""
    if "dataset" in spec:
        message = f"eval '{plugin.name}' calls a suite that has data of its own; remove it"
        builder.fault((*key, "dataset"), message, of_key=True)
    dataset = OfSuite(plugin)
    names = tuple(environment_names(json.dumps(spec, default=str)))
    held = depends.held(dataset)
    return Data(dataset, key, 0, written=plugin.suite, planned=held, environment=names)

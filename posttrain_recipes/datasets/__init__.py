"""Built-in datasets; they come in through the same hook as anybody's."""

from collections.abc import Sequence

from posttrain_recipes.datasets.collected import Collected
from posttrain_recipes.datasets.cookbook import Cookbook
from posttrain_recipes.datasets.curriculum import Curriculum
from posttrain_recipes.datasets.huggingface import HuggingFace
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.datasets.mix import Mix
from posttrain_recipes.datasets.nim import Nim
from posttrain_recipes.datasets.tools import Tools
from posttrain_recipes.plugin import Dataset, hookimpl


@hookimpl
def ptl_datasets() -> Sequence[type[Dataset]]:
    """The datasets of this package."""
    return [Jsonl, HuggingFace, Collected, Mix, Curriculum, Nim, Tools, Cookbook]

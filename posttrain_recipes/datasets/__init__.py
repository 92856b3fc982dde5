"""Built-in datasets; they come in through the same hook as anybody's."""

from collections.abc import Mapping

from posttrain_recipes.plugin import hookimpl


@hookimpl
def ptl_datasets() -> Mapping[str, str]:
    """Where the datasets of this package are: each is imported when it is first asked for."""
    return {
        "jsonl": "posttrain_recipes.datasets.jsonl:Jsonl",
        "huggingface": "posttrain_recipes.datasets.huggingface:HuggingFace",
        "collected": "posttrain_recipes.datasets.collected:Collected",
        "mix": "posttrain_recipes.datasets.mix:Mix",
        "curriculum": "posttrain_recipes.datasets.curriculum:Curriculum",
        "nim": "posttrain_recipes.datasets.nim:Nim",
        "tools": "posttrain_recipes.datasets.tools:Tools",
        "cookbook": "posttrain_recipes.datasets.cookbook:Cookbook",
    }

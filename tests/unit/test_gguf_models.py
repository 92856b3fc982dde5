"""`model: file.gguf`: a GGUF file is a base model as a directory is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain_recipes import ggufs, models
from posttrain_recipes.engine.model.base import BaseModel, pick_device
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.exporting import gguf
from posttrain_recipes.inference import target
from posttrain_recipes.options import AS_EVER
from posttrain_recipes.planning import plans
from posttrain_recipes.records import Message
from posttrain_recipes.shape import Shape
from posttrain_recipes.training.text import model_files, soundness
from posttrain_recipes.training.text.chat_template import load_renderer
from tests import exported
from tests.conftest import Project

pytest.importorskip("gguf")
RECIPE = """\
name: demo
model: {model}
stages:
  - name: sft
    dataset: {{use: jsonl, path: chat.jsonl}}
    method: {{use: sft}}
"""


@pytest.fixture
def file(project: Project) -> Path:
    folder = project.path / "made"
    folder.mkdir()
    gguf.write_model(exported.model("qwen3"), exported.tokenizer(), folder, "f32", "small", AS_EVER)
    return (folder / gguf.FILE).rename(project.path / "small.gguf")


@pytest.mark.parametrize("name", ["small.gguf", "./small.gguf", "{path}/small.gguf"])
def test_a_recipe_names_a_file(project: Project, file: Path, name: str) -> None:
    name = name.format(path=project.path)
    plan = project.plan(RECIPE.format(model=name))
    assert plans.model_location(name, project.path) == str(file)
    before = plan.stages[0].fingerprint
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match="changed"):
        plan.check_models()
    assert project.plan(RECIPE.format(model=name)).stages[0].fingerprint != before


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no GGUF file here"), (b"PK\3\4", "is no GGUF file: its first four bytes")],
)
def test_what_is_no_such_file_is_told_where_it_is_named(
    project: Project, content: bytes | None, says: str
) -> None:
    if content is not None:
        (project.path / "bad.gguf").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.format(model="./bad.gguf"))
    (fault,) = caught.value.faults
    assert (fault.key, says in fault.message) == ("model", True)
    with pytest.raises(UsageError, match=says):
        target.require_model(str(project.path / "bad.gguf"))


def test_a_file_that_was_cut_short_is_told_without_a_traceback(file: Path) -> None:
    whole = file.read_bytes()
    for share in (0.001, 0.2, 0.6):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(PtlError, match="cannot be read as GGUF"):
            ggufs.metadata(str(file))
        with pytest.raises(PtlError, match="cannot be read as GGUF"):
            load_renderer(str(file))
        with pytest.raises(RequestError, match="cannot be read as GGUF"):
            BaseModel("small", str(file), pick_device())


def test_its_tokenizer_passes_what_every_tokenizer_has_to(file: Path) -> None:
    renderer = load_renderer(str(file))
    assert list(soundness.keeps(renderer.again, renderer.special.values())) == []
    assert (renderer.eos, renderer.stop, renderer.rows, renderer.context) == (2, [2], 304, 256)
    named = model_files.ends_by_file(str(file))
    assert named == {"small.gguf": [2]}
    assert soundness.ends_differ(renderer.eos, named, str) is None
    text = renderer.decode(renderer.prompt([Message("user", "hi")]))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_engine_has_the_weights_and_the_ends_of_the_file(file: Path) -> None:
    base = BaseModel("small", str(file), pick_device(), torch.float32)
    ids = np.array([5, 6, 7, 8, 200])
    with torch.no_grad():
        want = exported.model("qwen3")(torch.from_numpy(ids)[None]).logits
    torch.testing.assert_close(base.logits([ids]).cpu(), want, rtol=0, atol=1e-4)
    assert base.eos_ids() == {2}
    assert base.tokenizer.eos_token_id == 2
    assert base.decoder is not None, "it takes the engine's own fast path"


def test_memory_is_bounded_by_the_sizes_in_the_file(file: Path) -> None:
    want = Shape.of(exported.model("qwen3").config.to_dict())
    assert Shape.read(file) == want


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.gguf", True), ("./A.GGUF", True), ("TheBloke/x-GGUF", False), ("org/name", False)],
)
def test_what_is_named_as_a_file(name: str, is_one: bool) -> None:
    assert models.is_path(name) is is_one or name.startswith(".")
    assert ggufs.is_gguf(name) is is_one

"""What vLLM makes of an adapter, and the app for Modal. Neither vLLM nor Modal runs here.

vLLM's rules are written down from its source (vllm/config/lora.py, vllm/lora/peft_helper.py,
vllm/lora/lora_model.py, vllm/lora/utils.py), in words of our own.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from posttrain_recipes.cli.deploy import deploy
from posttrain_recipes.cli.export import export
from posttrain_recipes.engine.model.base import BaseModel, new_adapter, pick_device
from posttrain_recipes.engine.wire import AdapterConfig
from posttrain_recipes.exporting import modal_app, vllm
from posttrain_recipes.exporting.modal_app import Served
from tests import exported
from tests.conftest import ROOT

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Layers that vLLM has adapters on, of Llama, Qwen2 and Qwen3."""
TAKES = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""


def vllm_loads(folder: Path, most: int = 16) -> dict[str, tuple[Any, Any, float]]:
    """An adapter as vLLM's loader reads it: layer -> (A, B, scale). Raises where that would."""
    config = json.loads((folder / "adapter_config.json").read_text())
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    assert most in TAKES
    assert isinstance(targets, str | list)
    if rank > most:
        raise ValueError(f"rank {rank} is above max_lora_rank {most}")
    if (
        config.get("modules_to_save")
        or config.get("use_dora")
        or config.get("bias", "none") != "none"
    ):
        raise ValueError("not supported")
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    layers: dict[str, dict[str, Any]] = {}
    for name, values in load_file(folder / "adapter_model.safetensors").items():
        layer, part, kind = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert (kind, part in ("lora_A", "lora_B")) == ("weight", True), name
        if layer.rsplit(".", 1)[-1] not in LLAMA:
            raise ValueError(f"unexpected layer {layer}")
        layers.setdefault(layer, {})[part] = values
    return {name: (one["lora_A"], one["lora_B"], scale) for name, one in layers.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = exported.saved(tmp_path_factory.mktemp("base"), "qwen3")
    return BaseModel("org/base", str(folder), pick_device())


def engines(base: BaseModel, folder: Path, **config: Any) -> Path:
    """An adapter as the engine saves it."""
    adapter = new_adapter(base, AdapterConfig(**{"seed": 1, "train_unembed": False, **config}))
    folder.mkdir()
    adapter.snapshot().save(folder, "org/base", base.targets)
    return folder


@pytest.mark.parametrize(("rank", "most"), [(1, 16), (16, 16), (17, 32), (100, 128), (300, 320)])
def test_vllm_takes_the_engines_files_as_they_are(
    base: BaseModel, tmp_path: Path, rank: int, most: int
) -> None:
    folder = engines(base, tmp_path / "a", rank=rank)
    assert vllm.faults(folder) == []
    words = shlex.split(vllm.command(folder, "org/base", "mine", "./a b"))
    assert words[:6] == [
        "vllm",
        "serve",
        "org/base",
        "--enable-lora",
        "--lora-modules",
        "mine=./a b",
    ]
    said = int(words[words.index("--max-lora-rank") + 1]) if "--max-lora-rank" in words else 16
    assert said == most
    layers = vllm_loads(folder, said)
    assert len(layers) == 7 * 2
    for name, (a, b, scale) in layers.items():
        target = base.targets[name]
        assert a.shape == (rank, target.inputs)
        assert b.shape == (target.outputs, rank)
        assert scale == 32 / rank


@pytest.mark.parametrize(
    ("config", "says"), [({"rank": 8, "train_unembed": True}, "lm_head"), ({"rank": 600}, "600")]
)
def test_what_vllm_refuses_is_told_before(
    base: BaseModel, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    folder = engines(base, tmp_path / "a", **config)
    with pytest.raises(ValueError, match="rank 600|unexpected layer lm_head"):
        vllm_loads(folder, 512)
    (fault,) = vllm.faults(folder)
    assert says in fault


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"), ({"lora_alpha": None}, "lacks lora_alpha"),
        ({"base_model_name_or_path": "/x/y.gguf"}, "GGUF"),
    ],
)  # fmt: skip
def test_other_adapters_are_looked_at_by_the_same_rules(
    base: BaseModel, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = engines(base, tmp_path / "a", rank=4)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert any(says in fault for fault in vllm.faults(folder))


def home_of(tmp_path: Path, name: str, **lora: Any) -> Path:
    made = exported.model("llama")
    exported.checkpoint(tmp_path / "home", name, made, **lora)
    exported.run(tmp_path / "home", name)
    return tmp_path / "home"


def ptl(command: Any, home: Path, *words: str) -> Result:
    return CliRunner().invoke(command, [*words, "--home", str(home)])


def test_an_export_ends_with_the_command_for_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ptl(export, home_of(tmp_path, "org/base", r=24), "demo-1", "out")
    want = "vllm serve org/base --enable-lora --lora-modules demo-1=out --max-lora-rank 32"
    assert result.output.splitlines()[-1] == f"with vLLM: {want}", str(result.exception)


def test_an_export_that_vllm_refuses_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = home_of(tmp_path, "org/base", target_modules=["q_proj", "lm_head"])
    result = ptl(export, home, "demo-1", "out")
    last = result.output.splitlines()[-1]
    assert last.startswith("vLLM does not serve this adapter as it is: it is trained on the output")
    assert "--merge" in last


# --- Modal ---------------------------------------------------------------------------------------


def check(folder: Path) -> dict[str, Any]:
    """See that both programs are sound Python in the project's own form; the app's constants."""
    for name in ("app.py", "client.py"):
        text = (folder / name).read_text()
        compile(text, name, "exec")
    for words in (("check",), ("format", "--check")):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", "--config",
             str(ROOT / "pyproject.toml"), str(folder / "app.py"), str(folder / "client.py")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
    tree = ast.parse((folder / "app.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found[ast.unparse(node.targets[0])] = node.value.value
    return found


def test_an_app_for_an_adapter_has_its_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = home_of(tmp_path, "org/base", r=24)
    result = ptl(deploy, home, "demo-1", "--modal", "--gpu", "H100:2")
    assert result.exit_code == 0, str(result.exception)
    folder = tmp_path / "demo-1-sft-modal"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter", "app.py", "client.py"]
    vllm_loads(folder / "adapter", 32)
    constants = check(folder)
    assert constants["BASE"] == "org/base"
    assert constants["GPU"] == "H100:2"
    text = (folder / "app.py").read_text()
    for part in ('"--max-lora-rank",\n        "32"', "modal.Secret.from_name(SECRET", "/health",
                 "scaledown_window", "modal deploy app.py", 'f"{MODEL}=/adapter"'):  # fmt: skip
        assert part in text
    assert "demo-1-sft-modal" in result.output


def test_a_base_of_this_machine_is_refused_or_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = home_of(tmp_path, str(exported.saved(tmp_path / "base")))
    told = str(ptl(deploy, home, "demo-1", "there", "--modal").exception)
    assert "is not on the hub" in told
    assert "--merge" in told
    assert "Modal Volume" in told
    assert not Path("there").exists()
    result = ptl(deploy, home, "demo-1", "there", "--modal", "--merge")
    assert result.exit_code == 0, str(result.exception)
    assert (Path("there") / "model" / "model.safetensors").is_file()
    assert check(Path("there"))["BASE"] == "/weights/model"
    assert "modal volume put demo-1-sft-weights model /" in Path("there/app.py").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [(["demo-1"], "give --modal"), (["demo-1", "--modal", "--gpu", "x'\n"], "--gpu names no GPU"),
     (["demo-1", "base", "--modal", "--merge"], "is there already")],
)  # fmt: skip
def test_what_cannot_be_deployed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    home = home_of(tmp_path, str(exported.saved(tmp_path / "base")))
    assert says in str(ptl(deploy, home, *words).exception)


NASTY = ['a"b', "a'b", "a\nimport os", "$app ${x}", '"""', "\\", "ü{}", "x" * 200, "--", "..", "🙂"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_the_programs(tmp_path: Path, name: str) -> None:
    label = modal_app.label(name, name)
    for place, base in ((tmp_path / "a", name), (tmp_path / "b", None)):
        served = Served(label, base, ("--max-lora-rank", "32"), template=True)
        place.mkdir()
        (place / "app.py").write_text(modal_app.app(served))
        (place / "client.py").write_text(modal_app.client(served))
        constants = check(place)
        assert constants["APP"] == constants["MODEL"] == label
        assert constants["BASE"] == (base or "/weights/model")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,36}", label)


def test_no_two_stages_have_an_app_in_common() -> None:
    long = "a_recipe_with_a_long_name_for_the_hub_x"
    stages = [
        ("two-1", "a"), ("two-1", "b"), ("two-2", "a"), (f"{long}-1", "a"), (f"{long}-2", "a"),
        (f"{long}-1", "b"), ("m-1", "q@rank=2"), ("m-1", "q-rank-2"), ("m-1", "q@rank:2"),
        ("a-1", "b-2-c"), ("a-1-b-2", "c"), ("tinker://x:train:0/sampler_weights/a", ""),
        ("tinker://x:train:0/sampler_weights/b", ""),
    ]  # fmt: skip
    labels = [modal_app.label(*one) for one in stages]
    assert len(set(labels)) == len(stages), labels
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,35}", one) for one in labels), labels
    assert labels[:2] == ["two-1-a", "two-1-b"]
    assert labels[3].startswith("a_recipe_with_a_long_name_for")


@pytest.mark.parametrize("words", [["demo-1"], ["demo-1/sft"], [str(exported.PATH)]])
def test_an_app_is_named_by_run_and_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ptl(deploy, home_of(tmp_path, "org/base"), *words, "there", "--modal")
    assert "for the app demo-1-sft" in result.output, str(result.exception)
    assert check(Path("there"))["APP"] == "demo-1-sft"
    assert check(Path("there"))["SECRET"] == "demo-1-sft"


@pytest.mark.parametrize("whole", [False, True])
def test_modal_itself_takes_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    pytest.importorskip("modal")
    served = Served("demo-1", None if whole else "org/base", template=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "app.py").write_text(modal_app.app(served))
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "import app, modal; assert isinstance(app.app, modal.App) and app.app.name == 'demo-1'\n"
    code += "assert isinstance(app.serve, modal.Function)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)

"""Broken recipes, each with the message that a person needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from posttrain_recipes.cli.validate import validate

GOOD = """\
name: demo
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, learning_rate: 1e-3}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, beta: 0.1}
"""

CHAT = (
    '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}\n'
)
PAIRS = '{"prompt": "hi", "chosen": "hello", "rejected": "what"}\n'

# name -> (recipe, what must be printed)
BROKEN: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["mine.yaml:1:1", "the recipe is empty"]),
    "a list": ("- name: demo\n", ["mine.yaml:1:1", "a recipe is a mapping"]),
    "bad yaml": ("name: [demo\nmodel: x\n", ["mine.yaml:2:6", "not YAML"]),
    "a tab": ("name: demo\nlora:\n\trank: 4\n", ["mine.yaml:3:1", "a tab; YAML is indented"]),
    "a python tag": (
        GOOD.replace("name: demo", "name: !!python/object/apply:os.system ['true']"),
        ["mine.yaml:1:7  name", "is not allowed in a recipe"],
    ),
    "a key twice": (
        GOOD.replace("model: ptl/tiny", "model: ptl/tiny\nmodel: ptl/nano"),
        ["mine.yaml:3:1  model", "given twice; first on line 2"],
    ),
    "a merge key": (
        GOOD.replace("model: ptl/tiny", "<<: {model: ptl/tiny}\nmodel: ptl/tiny"),
        ["mine.yaml:2:1", "merge keys are not read; use 'extends:'"],
    ),
    "no name": (GOOD.replace("name: demo\n", ""), ["mine.yaml:1:1", "a recipe needs 'name:'"]),
    "no stages": ("name: demo\nmodel: ptl/tiny\n", ["a recipe needs 'stages:'"]),
    "stages empty": ("name: demo\nmodel: ptl/tiny\nstages: []\n", ["needs at least 1 item"]),
    "a preset of nothing": (
        GOOD + "presets: {quick: null}\n",
        ["presets.quick", "a preset is a mapping", "mine.yaml: 1 fault"],
    ),
    "a preset of text": (GOOD + "presets: {other: text}\n", ["presets.other", "is a mapping"]),
    "nothing where one of a few words belongs": (
        GOOD + "engine: {use: local, dtype: null}\n",
        ["engine.dtype", "must be one of auto, float32, bfloat16, not null", "mine.yaml: 1 fault"],
    ),
    "unknown key": (
        GOOD.replace("model:", "modle: x\nmodel:"),
        ["mine.yaml:2:1  modle", "unknown key in a recipe; did you mean 'model'?"],
    ),
    "unknown stage key": (
        GOOD.replace("    eval:", "    evals:"),
        ["mine.yaml:7:5  stages.sft.evals", "unknown key in a stage; did you mean 'eval'?"],
    ),
    "misspelt option": (
        GOOD.replace("learning_rate: 1e-3", "learning_rat: 1e-3"),
        [
            "mine.yaml:6:24  stages.sft.method.learning_rat",
            "unknown option for method 'sft'; did you mean 'learning_rate'?",
        ],
    ),
    "unknown method": (
        GOOD.replace("use: dpo", "use: dpoo"),
        ["mine.yaml:10:19  stages.dpo.method.use", "unknown method \"dpoo\"; did you mean 'dpo'?"],
    ),
    "unknown dataset": (
        GOOD.replace("use: jsonl, path: pairs", "use: json, path: pairs"),
        ["stages.dpo.dataset.use", "unknown dataset \"json\"; did you mean 'jsonl'?"],
    ),
    "no use": (
        GOOD.replace("{use: dpo, beta: 0.1}", "{beta: 0.1}"),
        ["mine.yaml:10:13  stages.dpo.method", "needs 'use:', which names the method"],
    ),
    "a word for a mapping": (
        GOOD.replace("{use: dpo, beta: 0.1}", "dpo"),
        ["stages.dpo.method", 'must be a mapping (key: value), not "dpo"; write {use: dpo}'],
    ),
    "a file for a dataset": (
        GOOD.replace("{use: jsonl, path: pairs.jsonl}", "data/chat.jsonl"),
        ["stages.dpo.dataset", "write {use: jsonl, path: data/chat.jsonl}\n"],
    ),
    "a file for a dataset's plugin": (
        GOOD.replace("use: jsonl, path: pairs", "use: pairs"),
        ["stages.dpo.dataset.use", "write {use: jsonl, path: pairs.jsonl}\n"],
    ),
    "an id of the hub for a dataset": (
        GOOD.replace("{use: jsonl, path: pairs.jsonl}", "owner/set"),
        ["stages.dpo.dataset", "write {use: huggingface, path: owner/set}\n"],
    ),
    "a name of an eval where none stands above": (
        re.sub(r"    eval:.*", "    eval: [held_out]", GOOD, count=1),
        ["no eval above is named 'held_out'; none stands above: write the eval itself here"],
    ),
    "a template for its mapping": (
        GOOD.replace("stages:", "renderer: chatml\nstages:"),
        ["mine.yaml:3:11  renderer", 'not "chatml"; write {chat_template: chatml}\n'],
    ),
    "a name for a teacher": (
        GOOD.replace("{use: dpo, beta: 0.1}", "{use: distill_on_policy, teacher: sft}"),
        [
            "stages.dpo.method.teacher",
            'a mapping (key: value) or a list, not "sft"; write {stage: sft} or {model: sft}',
        ],
    ),
    "a word for a mapping without a plugin": (
        GOOD.replace("test_size: 1", "columns: question"),
        ["stages.sft.dataset.columns", 'must be a mapping (key: value), not "question"\n'],
    ),
    "no model": (GOOD.replace("ptl/tiny", "''"), ["mine.yaml:2:8  model", "1 fault\n"]),
    "wrong type": (
        GOOD.replace("1e-3", "fast"),
        [
            "mine.yaml:6:39  stages.sft.method.learning_rate",
            'must be a number, not "fast"; or write auto',
        ],
    ),
    "yes for true": (
        GOOD.replace("learning_rate: 1e-3", "truncate: yes"),
        ["stages.sft.method.truncate", 'must be true or false, not "yes"; write true or false'],
    ),
    "out of range": (
        GOOD.replace("1e-3", "-1"),
        ["stages.sft.method.learning_rate", "must be more than 0, not -1"],
    ),
    "not whole": (
        GOOD.replace("learning_rate: 1e-3", "max_steps: 1.5"),
        ["stages.sft.method.max_steps", "must be a whole number, not 1.5"],
    ),
    "not a choice": (
        GOOD.replace("learning_rate: 1e-3", "schedule: cosin"),
        ["stages.sft.method.schedule", "must be one of", "did you mean 'cosine'?"],
    ),
    "a choice in capitals": (
        GOOD.replace("learning_rate: 1e-3", "loss: DFT"),
        ["stages.sft.method.loss", """must be one of nll, dft, not "DFT"; did you mean 'dft'?"""],
    ),
    "no choice is near": (
        GOOD.replace("learning_rate: 1e-3", "loss: zzz"),
        ["stages.sft.method.loss", 'must be one of nll, dft, not "zzz"\n'],
    ),
    "a method in capitals": (
        GOOD.replace("use: dpo", "use: DPO"),
        ["stages.dpo.method.use", """unknown method "DPO"; did you mean 'dpo'?"""],
    ),
    "a method with hyphens": (
        GOOD.replace("use: dpo", "use: Online-DPO"),
        ["stages.dpo.method.use", "did you mean 'online_dpo'?"],
    ),
    "unknown stage": (
        GOOD.replace("  - name: dpo", "  - name: dpo\n    init_from: stf"),
        ["mine.yaml:9:16  stages.dpo.init_from", "unknown stage 'stf'; did you mean 'sft'?"],
    ),
    "a later stage": (
        GOOD.replace("  - name: sft", "  - name: sft\n    init_from: dpo"),
        ["stages.sft.init_from", "stage 'dpo' comes later; a stage starts from one above it"],
    ),
    "itself": (
        GOOD.replace("  - name: dpo", "  - name: dpo\n    init_from: dpo"),
        ["stages.dpo.init_from", "a stage cannot start from itself"],
    ),
    "sampler weights as a start": (
        GOOD.replace(
            "  - name: dpo", "  - name: dpo\n    init_from: tinker://a:train:0/sampler_weights/x"
        ),
        ["stages.dpo.init_from", "sampler_weights cannot be trained"],
    ),
    "two stages of one name": (
        GOOD.replace("name: dpo", "name: sft"),
        ["mine.yaml:8:11  stages.sft.name", "two stages are named 'sft'"],
    ),
    "wrong record type": (
        GOOD.replace("pairs.jsonl", "chat.jsonl"),
        [
            "mine.yaml:9:14  stages.dpo.dataset",
            "has Conversation records, and method 'dpo' takes Preference records; "
            "those have the fields 'prompt', 'chosen' and 'rejected'",
        ],
    ),
    "reward where none is taken": (
        GOOD.replace("    eval:", "    reward: {use: exact_match}\n    eval:"),
        ["mine.yaml:7:5  stages.sft.reward", "method 'sft' takes no reward; remove it"],
    ),
    "missing data file": (
        GOOD.replace("path: chat.jsonl", "path: chta.jsonl"),
        ["mine.yaml:5:33  stages.sft.dataset.path", "chat.jsonl"],
    ),
    "method without data": (
        GOOD.replace("    dataset: {use: jsonl, path: pairs.jsonl}\n", ""),
        ["mine.yaml:8:5  stages.dpo", "method 'dpo' needs a 'dataset:' to train on"],
    ),
    "eval without data": (
        GOOD.replace(", test_size: 1", ""),
        ["mine.yaml:7:12  stages.sft.eval[0]", "has no data", "'test_size:'"],
    ),
    "unknown eval by name": (
        GOOD + "    eval: [nl]\n",
        ["mine.yaml:11:12  stages.dpo.eval[0]", "no eval above is named 'nl'; did you mean 'nll'?"],
    ),
    "two evals of one name": (
        GOOD.replace("[{use: nll}]", "[{use: nll}, {use: nll}]"),
        ["stages.sft.eval[1]", "two evals of this stage are named 'nll'; give one a 'name:'"],
    ),
    "an eval twice under two names": (
        GOOD.replace("[{use: nll}]", "[{use: nll}, {use: nll, name: again}]"),
        ["stages.sft.eval", "evals 'nll' and 'again' measure the same, on the same records"],
    ),
    "a stage that does nothing": (
        GOOD + "  - name: idle\n",
        ["mine.yaml:11:5  stages.idle", "does nothing"],
    ),
    "unknown engine": (
        GOOD.replace("stages:", "engine: locl\nstages:", 1),
        ["mine.yaml:3:9  engine", "unknown engine \"locl\"; did you mean 'local'?"],
    ),
    "a secret in plain text": (
        GOOD.replace("stages:", "engine: {use: tinker, api_key: tml-abc}\nstages:", 1),
        ["mine.yaml:3:32  engine.api_key", "write ${env:API_KEY}"],
    ),
    "unknown bundled model": (
        GOOD.replace("ptl/tiny", "ptl/tny"),
        ["mine.yaml:2:8  model", "did you mean 'ptl/tiny'?"],
    ),
    "no such model directory": (
        GOOD.replace("ptl/tiny", "./my-model"),
        ["mine.yaml:2:8  model", "no model directory with a config.json"],
    ),
    "another adapter shape": (
        GOOD + "    lora: {rank: 8}\n",
        ["stages.dpo.lora", "an adapter keeps its shape"],
    ),
    "a bound of nothing": (
        GOOD + "limits: {max_hours: 0}\n",
        ["limits.max_hours", "must be more than 0, not 0"],
    ),
    "a preset that names no stage": (
        GOOD + "presets: {tiny: {stages: {stf: {seed: 1}}}}\n",
        ["stages.stf", "nothing is named 'stf'; did you mean 'sft'?"],
    ),
    "a base recipe that is not there": (
        "extends: base.yaml\n" + GOOD,
        ["mine.yaml:1:10  extends", "there is no file base.yaml"],
    ),
    "an unset variable": (
        GOOD.replace("path: pairs.jsonl", "path: '${env:PTL_TEST_NOT_SET}'"),
        ["PTL_TEST_NOT_SET is not set"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_says_what_a_person_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = BROKEN[name]
    (tmp_path / "chat.jsonl").write_text(CHAT * 2)
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(validate, ["mine.yaml"], standalone_mode=False)
    assert result.exception is None, result.exception
    assert result.return_value == 2
    for part in expected:
        assert part in result.output, result.output
    assert "Traceback" not in result.output


def test_there_are_thirty() -> None:
    assert len(BROKEN) >= 30


def test_the_recipe_that_they_break_is_good(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(CHAT * 2)
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    (tmp_path / "mine.yaml").write_text(GOOD)
    result = CliRunner().invoke(validate, [str(tmp_path / "mine.yaml")], standalone_mode=False)
    assert result.return_value == 0, result.output


def test_all_faults_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Form, cross-references and data files are told in one go."""
    (tmp_path / "chat.jsonl").write_text(CHAT * 2)
    text = (
        GOOD.replace("learning_rate: 1e-3", "learning_rat: 1e-3")
        .replace("use: dpo,", "use: dpo, init: 1,")
        .replace("  - name: dpo", "  - name: dpo\n    init_from: stf")
        .replace("model: ptl/tiny", "model: ptl/tny")
    )
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    output = CliRunner().invoke(validate, ["mine.yaml"], standalone_mode=False).output
    for part in (
        "learning_rat",
        "dpo.method.init",
        "unknown stage 'stf'",
        "ptl/tny",
        "pairs.jsonl",
    ):
        assert part in output
    assert "mine.yaml: 5 faults" in output

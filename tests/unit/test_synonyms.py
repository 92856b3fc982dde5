"""Names of other tools: what an unknown key and `ptl explain` say of them."""

from __future__ import annotations

import pytest

from posttrain_recipes import registry
from posttrain_recipes.cli import words
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.language import synonyms
from posttrain_recipes.language.schema import recipe_schema
from tests.conftest import Project, Ptl

RECIPE = """\
name: demo
model: ptl/nano
stages:
  - name: first
    dataset: {use: jsonl, path: chat.jsonl}
    method: METHOD
"""


def test_every_option_of_the_table_is_one() -> None:
    found = registry.load()
    schema = recipe_schema(found)
    there = words.all_words(found) | set(schema["properties"]) | {"every", "rank", "init_from"}
    assert {name for names in map(synonyms.options, synonyms.names()) for name in names} <= there
    assert not set(synonyms.ELSEWHERE) & {n for n in synonyms.names() if synonyms.options(n)}


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("{use: sft, lr: 1e-3}", "'lr' is called 'learning_rate' here"),
        ("{use: sft, num_train_epochs: 1}", "'num_train_epochs' is called 'epochs' here"),
        ("{use: sft, per_device_train_batch_size: 1}", "is called 'batch_size' here"),
        ("{use: sft, Cutoff-Len: 1}", "'Cutoff-Len' is called 'max_length' here"),
        ("{use: grpo, beta: 0.1}", "'beta' is called 'kl_beta' here"),
        ("{use: grpo, num_generations: 8}", "'num_generations' is called 'group_size' here"),
        ("{use: best_of_n, num_generations: 8}", "'num_generations' is called 'n' here"),
        ("{use: sft, Learning-Rate: 1e-3}", "write 'learning_rate'"),
        ("{use: sft, packing: true}", "'packing' is the engine's: each example is a sequence"),
        ("{use: sft, lora_alpha: 16}", "'lora_alpha' is nothing that Tinker's protocol carries"),
        ("{use: sft, lora.r: 16}", "'lora.r' stands in 'lora: {rank: ...}', at the top"),
        ("{use: sft, seed: 1}", "'seed' stands at the top of a recipe, or in a stage"),
        ("{use: sft, reward: x}", "'reward' stands in a stage, beside 'method:'"),
    ],
)
def test_an_unknown_key_says_what_it_is_called_here(
    ptl: Ptl, project: Project, method: str, hint: str
) -> None:
    project.write("mine.yaml", RECIPE.replace("METHOD", method))
    said = ptl("validate", "mine.yaml")
    assert said.code == 2
    assert hint in said.err + said.out


SPELLINGS = (
    *("loraAlpha", "lora-alpha", "LoRA_alpha", "DoRA", "rsLoRA", "loraplus_lr_ratio", "pissa"),
    *("qlora", "lora_r", "lora_dim", "lora_target_modules", "layers_to_transform"),
)
PEFT_ALONE = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "bias"),
}
"""Fields of peft's config that are no matter of an adapter's shape, or mean more than that."""


def test_every_word_of_peft_for_an_adapter_is_known() -> None:
    peft = pytest.importorskip("peft")
    fields = set(peft.LoraConfig.__dataclass_fields__) - PEFT_ALONE
    assert fields - {name for name in fields if synonyms.of_adapter(name)} == set()
    assert fields - {name for name in fields if synonyms.elsewhere(name)} == set()


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(
    "where", ["lora: {rank: 8, NAME: 1}\n", "NAME: 1\n", "    NAME: 1\n", "    lora: {NAME: 1}\n"]
)
def test_words_of_an_adapter_are_answered_wherever_they_stand(
    project: Project, name: str, where: str
) -> None:
    text = RECIPE.replace("METHOD", "sft")
    line = where.replace("NAME", name)
    with pytest.raises(RecipeError) as caught:
        project.plan(text + line if where.startswith(" ") else line + text)
    [fault] = [one.message for one in caught.value.faults if name in one.message]
    assert "did you mean" not in fault
    words = ("Tinker's protocol carries", "'rank' here", "'lora: {rank: ...}'", "quantized base")
    assert any(word in fault for word in words), fault


def test_a_stage_says_what_its_keys_are_called(ptl: Ptl, project: Project) -> None:
    text = RECIPE.replace("METHOD", "sft") + "  - {name: second, start: first, method: sft}\n"
    project.write("mine.yaml", text)
    said = ptl("validate", "mine.yaml")
    assert "'start' is called 'init_from' here" in said.err + said.out


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("rloo", ["'rloo', a value of 'advantage'", "method: {use: grpo, advantage: rloo}"]),
        ("GSPO", ["'gspo', a value of 'loss'", "of     method grpo, method self_play"]),
        ("DPO", ["dpo, a method of posttrain-recipes"]),
        ("kl_beta", ["'kl_beta', an option", "write  method: {use: grpo, kl_beta: ...}"]),
        ("lr", ["lr of other tools is here:", "'learning_rate', an option"]),
        ("matrix", ["'matrix', a key of a recipe"]),
        ("init_from", ["'init_from', a key of a stage"]),
        ("deepspeed", ["'deepspeed' is the engine's"]),
    ],
)
def test_explain_finds_options_values_and_words_of_other_tools(
    ptl: Ptl, word: str, parts: list[str]
) -> None:
    said = ptl("explain", word)
    assert said.code == 0
    for part in parts:
        assert part in said.out


def test_explain_shows_a_method_by_recipes_that_train_with_it(ptl: Ptl) -> None:
    said = " ".join(ptl("explain", "grpo").out.split())
    assert said.index("grpo_arithmetic.yaml") < said.index("grpo_gsm8k.yaml")
    assert "showed grpo_arithmetic: held_out after rl" in said
    assert "after sft" not in said.split("options")[0]

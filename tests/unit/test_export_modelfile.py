"""A chat template as Ollama has it: the same text for every conversation, or none at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from jinja2 import Environment

from posttrain_recipes.exporting import modelfile
from posttrain_recipes.exporting.modelfile import Render, Turn
from posttrain_recipes.training.text.templates import NAMED
from tests import exported

QWEN3 = (  # the shape of Qwen3's: a past reply loses its reasoning, the last one gets an empty one
    "{%- for m in messages %}{%- if m.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + exported.CHATML
)
TRIMS = exported.CHATML.replace("m.content", "m.content | trim")
BRACES = exported.CHATML.replace("<|im_start|>", "{{ '{{' }}turn{{ '}}' }} ")
LLAMA2 = (  # a system message stands within the first user's
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.first and s %}<<SYS>>{{ s }}<</SYS>>{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
NUMBERS = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}you:"
LOUD = exported.CHATML.replace("m.content", "m.content | upper")
REFUSES = "{{ raise_exception('no') }}"


def render(template: str, bos: str = "") -> Render:
    made = Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def rendered(turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": role, "content": said} for role, said in turns]
        return made.render(
            messages=messages, add_generation_prompt=asks, bos_token=bos, eos_token="</s>"
        )

    return rendered


def go(template: str, turns: Sequence[Turn]) -> str:
    """What Go's text/template makes of the few forms that are written, read independently."""
    messages = list(turns)
    first = re.match(r"\{\{ if and \.Messages .*?\}\}(.*?)\{\{ end \}\}", template, re.S)
    text = ""
    if first:
        template = template[first.end() :]
        text += "" if messages[0][0] == "system" else first[1]
    loop = re.fullmatch(
        r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.S
    )
    assert loop
    forms = dict(
        re.findall(
            r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop[1], re.S
        )
    )
    for role, said in messages:
        text += (
            forms[role]
            .replace("{{ .Content }}", "\0")
            .replace('{{ "{{" }}', "{{")
            .replace("\0", said)
        )
    return (text if not first else text.replace('{{ "{{" }}', "{{")) + loop[2].replace(
        '{{ "{{" }}', "{{"
    )


SURE = {
    "chatml": exported.CHATML,
    "a default system message": DEFAULT,
    "qwen3": QWEN3,
    "trims": TRIMS,
    "braces": BRACES,
    **{name: path.read_text() for name, path in NAMED.items()},
}


@pytest.mark.parametrize("name", SURE)
def test_what_is_translated_gives_the_same_text(name: str) -> None:
    bos = "<s>"
    own = render(SURE[name], bos)
    text, told = modelfile.write("model.gguf", own, ["<|im_end|>"], bos=bos)
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.S)
    talks: list[list[Turn]] = [
        [("user", 'hi {x} \\ "so"')],
        [("system", "Be brief."), ("user", "1\n\n2")],
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "ü 你")],
    ]
    for talk in talks:
        assert go(template, talk) == own(talk, True).removeprefix(bos)
    assert any("white space" in note for note in told) is (name in ("trims", "llama3"))
    assert text.splitlines()[-1] == 'PARAMETER stop "<|im_end|>"'
    assert "FROM ./model.gguf\n" in text


@pytest.mark.parametrize("template", [LLAMA2, NUMBERS, LOUD, REFUSES])
def test_what_is_not_sure_is_not_written_and_told(template: str) -> None:
    text, told = modelfile.write("model.gguf", render(template), ["</s>"])
    assert "TEMPLATE" not in re.sub(r"#.*", "", text)
    assert "no sure translation" in told[0]
    assert "# Note: the model's chat template has no sure translation" in text
    assert 'PARAMETER stop "</s>"' in text


def test_a_model_without_a_template_is_told_of() -> None:
    text, told = modelfile.write("model.gguf", None, [])
    assert "has no chat template" in told[0]
    assert text.splitlines()[-1] == "FROM ./model.gguf"


@pytest.mark.parametrize("stop", ['a"b', "a\nb", 'x"""y', "zero\u200bwidth", 'ends"'])
def test_what_a_modelfile_cannot_quote_does_not_stand_in_it(stop: str) -> None:
    text, told = modelfile.write("model.gguf", None, [stop])
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    if stop in ('a"b', "a\nb"):
        assert f'PARAMETER stop """{stop}"""' in text
    else:
        assert lines == ["FROM ./model.gguf"]
        assert any(repr(stop) in note for note in told)


def test_a_note_stays_on_its_line(tmp_path: Path) -> None:
    text, _ = modelfile.write("model.gguf", None, [], notes=["one\nFROM /etc/passwd"])
    assert [line for line in text.splitlines() if line.startswith("FROM")] == ["FROM ./model.gguf"]

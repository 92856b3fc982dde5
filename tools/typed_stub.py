"""Write `posttrain_recipes/typed/__init__.pyi`, the types of recipes in Python, from their schema.

python tools/typed_stub.py
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_recipes import registry, typed
from posttrain_recipes.language.schema import recipe_schema

STUB = Path(typed.__file__).with_suffix(".pyi")
HEAD = '''"""Generated from the schema of recipes by tools/typed_stub.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

class RecipePart(dict[str, Any]): ...
'''
SPECIAL = {
    ("stage", "reward"): "RewardPiece | Sequence[RewardPiece]",
    ("stage", "eval"): "Sequence[EvalPiece | str]",
    ("recipe", "engine"): "EnginePiece | str",
    ("recipe", "trackers"): "Sequence[TrackerPiece | str]",
    ("compare", "compare"): "Sequence[StagePiece | Mapping[str, Any]]",
}
"""Where the schema branches by what it is given."""
STAGES = "Sequence[StagePiece | RepeatPiece | ComparePiece]"
PLAIN = {"string": "str", "number": "float", "integer": "int", "boolean": "bool", "null": "None"}


def annotation(owner: str, key: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """The type of a property, as Python writes it."""
    if (owner, key) in SPECIAL:
        return SPECIAL[owner, key]
    if "$ref" in schema:
        return _referred(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return f"Literal[{', '.join(map(repr, values))}]"
    if "anyOf" in schema:
        parts = [annotation(owner, key, one, defs) for one in schema["anyOf"]]
        return " | ".join(dict.fromkeys(parts))
    kind = schema.get("type")
    if kind == "array":
        return f"Sequence[{annotation('', '', schema.get('items', {}), defs)}]"
    if kind == "object":
        values = schema.get("additionalProperties")
        inner = annotation("", "", values, defs) if isinstance(values, dict) else "Any"
        return f"Mapping[str, {inner}]"
    if kind == "string" and key == "path":
        return "str | Path"
    return PLAIN.get(str(kind), "Any")


def _referred(name: str) -> str:
    if name == "stages":
        return STAGES
    last = name.rpartition(".")[2]
    for ending, piece in (("Ref", ""), ("Config", "")):
        if last.endswith(ending):
            last = last.removesuffix(ending) + piece
    last = last[:1].upper() + last[1:]
    known = {one.capitalize() for one in (*typed.KINDS, *typed.PIECES)}
    return f"{last}Piece" if last in known else "Mapping[str, Any]"


def function(
    name: str, definition: Mapping[str, Any], returns: str, defs: Mapping[str, Any], inside: bool
) -> Iterator[str]:
    """The lines of one builder."""
    pad = "    " if inside else ""
    known = {k: v for k, v in definition["properties"].items() if k != "use"}
    required = definition.get("required", ())
    yield f"{pad}def {name}("
    if inside:
        yield f"{pad}    self,"
    names = [key for key in known if key.isidentifier() and not keyword.iskeyword(key)]
    if names:
        yield f"{pad}    *,"
    for key in sorted(names, key=lambda key: key not in required):
        default = "" if key in required else " = ..."
        yield f"{pad}    {key}: {annotation(name, key, known[key], defs)}{default},"
    text = typed.documented(name, definition, known).replace("\\", "\\\\").replace('"""', "'''")
    yield f'{pad}) -> {returns}: """{text.splitlines()[0]}'
    for line in text.splitlines()[1:]:
        yield f"{pad}    {line}".rstrip()
    yield f'{pad}    """'


def stub() -> str:
    """The whole file, of what is installed here: run it where that is the built-ins alone."""
    defs = recipe_schema(registry.load())["$defs"]
    lines = [HEAD]
    for name in (*typed.KINDS, *typed.PIECES):
        lines.append(f"class {name.capitalize()}Piece(RecipePart): ...")
    for kind in typed.KINDS:
        lines += ["", f"class _{kind.capitalize()}s:"]
        names = defs[kind]["properties"]["use"]["enum"]
        if not names:  # those of packages alone, which nobody knows here
            piece = f"{kind.capitalize()}Piece"
            lines.append(f"    def __getattr__(self, name: str) -> Callable[..., {piece}]: ...")
        for name in names:
            made = defs[f"{kind}.{name}"]
            lines += function(name, made, f"{kind.capitalize()}Piece", defs, inside=True)
        lines += ["", f"{kind}: _{kind.capitalize()}s"]
    for name in typed.PIECES:
        lines += [
            "",
            *function(name, defs[name], f"{name.capitalize()}Piece", defs, inside=False),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")

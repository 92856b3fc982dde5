"""What ships beside the code: recipes with their data, the schema, the pages of documentation.

In a checkout they lie at its top; a wheel carries them inside the package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from posttrain_recipes.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
"""Where `recipes/`, `schemas/` and `docs/` are."""
INDEX = ROOT / "plugins" / "index.json"
SCHEMA = ROOT / "schemas" / "recipe.schema.json"
EFFECTS = ROOT / "docs" / "effects.md"

_PAGE = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.md\b")
_MADE = {
    "docs/reference/recipe.md": "'ptl schema'",
    "docs/reference/commands.md": "'ptl --help'",
    "docs/reference/words.md": "'ptl explain WORD'",
}
"""What tells the same as a page that only the site has, for it is written from the code."""
_WORD = re.compile(r"[\w./-]+")


def in_checkout() -> bool:
    """Whether this is a checkout, in which `ptl run recipes/NAME.yaml` works."""
    return ROOT != _PACKAGE / "shipped"


def recipes() -> dict[str, Path]:
    """Every shipped recipe, by its name."""
    return {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}


def lookup(name: str) -> Path | None:
    """The shipped recipe of a name, or of a path that ends in it; None where there is none."""
    return recipes().get(Path(name).stem if name.endswith(".yaml") else name)


def find(name: str) -> Path:
    """As `lookup`.

    Raises:
        UsageError: there is none; it names the nearest.
    """
    path = lookup(name)
    if path is None:
        known = recipes()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(known)}"
        raise UsageError(f"no shipped recipe is named '{name}'", hint=hint, code="unknown-name")
    return path


def description(recipe: Path) -> str:
    """What a shipped recipe says of itself in a sentence or two."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe, and faster
    return str(yaml.load(recipe.read_text(encoding="utf-8"), loader)["description"])


def with_pages(text: str) -> str:
    """A text for the terminal, in which pages of the documentation are where they lie here."""

    def where(found: re.Match[str]) -> str:
        if found[0] in _MADE:
            return _MADE[found[0]]
        page = ROOT / found[0]
        return shown(page) if page.is_file() else found[0]

    return _PAGE.sub(where, text)


def shown(path: Path) -> str:
    """A path as it is opened from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def parts(recipe: Path) -> list[Path]:
    """The files beside a shipped recipe that it cannot do without, relative to its folder: data,
    recipes that it extends, modules with its functions, and licences (`x.LICENSE.txt` beside
    `x.jsonl`)."""
    found: dict[Path, None] = {}
    for word in _words(recipe.read_text(encoding="utf-8")):
        for name in (word, f"{word}.py", f"{word.removesuffix('.jsonl')}.LICENSE.txt"):
            file = recipe.parent / name
            if file.is_file() and file != recipe and file.is_relative_to(recipe.parent):
                found[file.relative_to(recipe.parent)] = None
                if file.suffix == ".yaml":
                    found.update(dict.fromkeys(parts(file)))
    return list(found)


def _words(text: str) -> Iterator[str]:
    """What may be a file or a module, outside of comments."""
    for line in text.splitlines():
        yield from _WORD.findall(re.sub(r"(^|\s)#.*", "", line))

"""The SDK that is installed: which ones work, and that what is not public of it is in one place."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
import tinker
from click.testing import CliRunner

from posttrain_recipes import sdk
from posttrain_recipes.cli import cli
from posttrain_recipes.errors import PtlError

ROOT = Path(__file__).parents[2]


def test_the_one_that_is_installed_works() -> None:
    sdk.check()
    sdk.check_names()


def test_the_versions_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"tinker>=([\d.]+),<([\d.]+)"', text)
    assert found is not None
    oldest, before = (tuple(map(int, f"{part}.0".split(".")[:2])) for part in found.groups())
    assert (oldest, before) == (sdk.OLDEST, sdk.BEFORE)


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0.25.0", "older ones lack what asks servers what they can do"),
        ("0.9", "older ones lack"),
        ("1.0.1", "was not tried with what came later"),
        ("2.0.0rc1", "was not tried"),
        (None, "is not installed"),
    ],
)
def test_another_one_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, version: str | None, says: str
) -> None:
    def of(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(sdk.importlib.metadata, "version", of)
    with pytest.raises(PtlError) as caught:
        sdk.check()
    told = f"{caught.value.what} {caught.value.why} {caught.value.hint}"
    assert says in told
    assert "pip install 'tinker>=0.38,<0.39'" in told
    if version:
        assert version in told


def test_one_without_a_number_is_told_by_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tinker, "RestClient")
    monkeypatch.delattr(tinker.ServiceClient, "close")
    with pytest.raises(PtlError) as caught:
        sdk.check_names()
    assert "RestClient, which asks servers" in str(caught.value.why)
    assert "ServiceClient.close" in str(caught.value.why)
    assert "Dimuon" not in str(caught.value.why)


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--port", "0"],
        ["engines", "check"],
        ["engines", "check", "--base-url", "http://127.0.0.1:9"],
    ],
)
def test_a_command_ends_with_it_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-some-key-of-a-test")
    monkeypatch.setenv("PTL_HOME", str(tmp_path))
    monkeypatch.setattr(sdk.importlib.metadata, "version", lambda name: "0.25.0")
    done = CliRunner().invoke(cli, command, standalone_mode=False)
    assert isinstance(done.exception, PtlError)
    assert "does not work with tinker 0.25.0, which is installed" in done.exception.what


def test_what_is_not_public_of_the_sdk_is_named_in_one_file() -> None:
    """But for the protocol's own messages, which the engine's wire is written in."""
    private = []
    for path in sorted((ROOT / "posttrain_recipes").rglob("*.py")):
        if path.name == "sdk.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            private += [
                f"{path.name}: {name}"
                for name in names
                if re.match(r"tinker\.(lib|_|resources|internal)", name)
            ]
    assert private == []

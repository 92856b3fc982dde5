"""The built wheel, installed in an environment of its own, from an empty directory to a table."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.conftest import ROOT

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def test_from_an_empty_directory_to_a_table(tmp_path: Path) -> None:
    """What it stands on comes from this environment: to install that takes minutes (nightly)."""
    offline = ["--no-index", "--no-deps"]
    wheels, place = tmp_path / "wheels", tmp_path / "place"
    place.mkdir()
    subprocess.run(
        [*PIP, "wheel", "-q", *offline, "--no-build-isolation", "-w", wheels, ROOT], check=True
    )
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    # Lines of .pth files in there are not read: the tree is not on the path.
    (packages / "below.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (wheel,) = wheels.glob("*.whl")
    python = str(venv / "bin" / "python")
    subprocess.run([*PIP, "--python", python, "install", "-q", *offline, wheel], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PTL_HOME")}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import posttrain_recipes; print(posttrain_recipes.__file__)")
    assert Path(where.strip()).is_relative_to(venv)
    ptl = str(venv / "bin" / "ptl")
    run(ptl, "init", ".", "--recipe", "grpo_arithmetic")
    table = run(ptl, "run", "grpo_arithmetic.yaml", "--preset", "tiny")
    assert "held_out" in table.partition("stage  eval")[2]
    assert (place / ".ptl" / "runs" / "grpo_arithmetic-1" / "report.html").is_file()

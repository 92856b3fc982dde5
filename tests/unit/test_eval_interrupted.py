"""`ptl eval` that is stopped by Ctrl-C."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes.cli.eval import eval as command
from posttrain_recipes.running import runner


def test_it_does_not_send_to_a_program_that_reads_no_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", stopped)
    suite = tmp_path / "suite.yaml"
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    suite.write_text("- {use: exact_match, dataset: {use: jsonl, path: a.jsonl}}\n")
    told = CliRunner().invoke(
        command,
        ["ptl/nano", "--suite", str(suite), "--home", str(tmp_path / "h")],
        standalone_mode=False,
    )
    assert told.return_value == 130, told.output
    assert f"go on with: ptl eval ptl/nano --suite {suite}" in told.output

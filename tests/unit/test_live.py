"""What stands in a terminal while a run goes on: a bar, a spinner, and what was said before."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.progress.bar import Bar
from posttrain_recipes.progress.live import Live
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import Estimate, EvalResult
from posttrain_recipes.running import runner
from posttrain_recipes.running.events import SamplingProgress
from posttrain_recipes.store import StageRecord

ROLLOUTS = {
    "train/tokens_per_second": 12345.0,
    "reward/mean": -12.4,
    "feedback/learned_share": 0.75,
    "groups/zero_variance_share": 1.0,
    "completions/clipped_ratio": 0.88,
    "completions/mean_length": 1024.0,
    "policy/kl_reference": 0.0312,
}
EVAL: Any = SimpleNamespace(
    name="val", every=3, fingerprint="v", eval=SimpleNamespace(name="exact_match")
)
STAGE: Any = SimpleNamespace(
    name="sft", index=1, start="base", keep=None, evals=(EVAL,), method=SimpleNamespace(name="sft")
)
FOUND = EvalResult({"exact_match": Estimate(0.5, 0.4, 0.6, 12)}, ())
_CODE = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Terminal(io.StringIO):
    """A terminal, and what stands on its screen."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        """Its lines, after all that was written: text, and the few codes that rich moves with."""
        lines, row, column = [""], 0, 0
        for number, code, back, down, text in _CODE.findall(self.getvalue()):
            if code == "A":
                row = max(0, row - int(number or 1))
            elif code == "K":
                lines[row] = ""
            elif back:
                column = 0
            elif down:
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif text:
                before = lines[row].ljust(column)
                lines[row] = before[:column] + text + before[column + len(text) :]
                column += len(text)
        return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.fixture
def live(terminal: Terminal) -> Any:
    made = Live(Lasting(terminal))
    yield made
    made.close()


def under_way(live: Live) -> str | None:
    """What the spinner says."""
    return None if live.status is None else str(live.status.status)


def evaluate(live: Live, when: str) -> None:
    live.evaluating(EVAL, when.replace(" ", "-"), f"val at {when} of sft")
    live.evaluated(STAGE, EVAL, when, FOUND)


def test_the_bar_comes_back_after_an_eval(live: Live, terminal: Terminal) -> None:
    live.training(STAGE, 0, 9)
    for step in range(1, 4):
        live.step(step, 9, {"train/loss": 1.0})
    live.evaluating(EVAL, "step-3", "val at step 3 of sft")
    assert live.shown is None
    assert under_way(live) == "evaluating val at step 3 of sft"
    live.evaluated(STAGE, EVAL, "step 3", FOUND)
    assert under_way(live) is None
    assert live.shown is not None
    live.step(4, 9, {"train/loss": 0.5})
    live.close()
    *_, found, bar = terminal.screen
    assert found.startswith("  step 3 val: 50.0%")
    assert bar.startswith("  step 4/9 ")
    assert "loss 0.5000" in bar
    assert sum("step 3/9" in line for line in terminal.screen) == 0, "an old bar stays nowhere"


@pytest.mark.parametrize("total", [3, 9])
@pytest.mark.parametrize("known", [False, True])
def test_after_its_last_step_the_bar_stays_where_it_is(
    live: Live, terminal: Terminal, total: int, known: bool
) -> None:
    """So does that of a stage which its evals ended early."""
    live.training(STAGE, 0, total)
    live.step(3, total, {"train/loss": 0.5})
    if known:
        live.evaluated(STAGE, EVAL, "after", FOUND)
    else:
        evaluate(live, "after")
    assert live.shown is None
    live.stage_finished(STAGE, StageRecord("sft", "", "sft"))
    told = [line[2:10] for line in terminal.screen]
    assert told == [f"step 3/{total}", "after  v", "done in "]
    assert not any(line.endswith(" left") for line in terminal.screen)


def test_a_step_brings_the_bar_back_whatever_was_said(live: Live) -> None:
    live.training(STAGE, 0, 9)
    live.doing("something that nobody ends")
    live.step(1, 9, {"train/loss": 0.5})
    assert under_way(live) is None
    assert live.shown is not None


def test_rl_goes_on_in_the_bar_and_its_requests_are_not_told_in_its_place(live: Live) -> None:
    live.training(STAGE, 0, 9)
    live.step(1, 9, ROLLOUTS)
    evaluate(live, "step 3")
    live.sampling(SamplingProgress("training rl", 0, 0, "", 20, 16, 9, 9, 1.0))
    assert under_way(live) is None
    assert live.shown is not None
    assert live.bar is not None
    assert live.bar.told.startswith("reward -12.400")


@pytest.mark.parametrize("end", ["evaluated", "reused", "skipped"])
def test_what_the_spinner_says_goes_when_it_is_over(live: Live, end: str) -> None:
    live.doing("starting the engine")
    if end == "evaluated":
        live.evaluated(STAGE, EVAL, "before", FOUND)
    elif end == "reused":
        live.stage_reused(STAGE, StageRecord("sft", "", "sft"))
    else:
        live.stage_skipped(STAGE, StageRecord("sft", "", "sft", error="needs 'x'"))
    assert under_way(live) is None


@pytest.mark.parametrize("while_training", [False, True])
def test_a_warning_is_whole_while_something_is_under_way(
    live: Live, terminal: Terminal, while_training: bool
) -> None:
    if while_training:
        live.training(STAGE, 0, 9)
    else:
        live.doing("starting the engine")
    live.warning("the data are small")
    live.note("exact_match: max_tokens 16: the answers are short")
    live.close()
    assert "warning: the data are small" in terminal.screen
    assert "  exact_match: max_tokens 16: the answers are short" in terminal.screen


def test_a_long_note_breaks_between_words(live: Live, terminal: Terminal) -> None:
    live.note(" ".join(["word"] * 30))
    assert max(map(len, terminal.screen)) <= 80
    assert set(" ".join(terminal.screen).split()) == {"word"}


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_the_step_and_the_time_left_are_whole_in_any_width(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    live = Live(Lasting(terminal))
    live.training(STAGE, 0, 12000)
    for step in range(1198, 1201):
        live.step(step, 12000, {**ROLLOUTS, "reward/mean": step - 1212.4})
    assert live.bar is not None
    live.bar.left = "1 h 10 min left"
    live.close()
    screen = terminal.screen
    assert max(map(len, screen)) <= width
    assert screen[0].startswith("  step 1200/12000 ")
    assert screen[0].endswith("1 h 10 min left")
    whole = " ".join(" ".join(screen).split())
    for part in (
        "reward -12.400 (+1.000/step)", "loss 0.0000 learned 75%", "zero-var 100%", "cut 88%",
        "kl 0.031", "len 1024",
    ):  # fmt: skip
        assert part in whole
    if width >= 80:
        assert "12,345 tokens/s" in screen[0]
    assert len(screen) <= {40: 5, 80: 3, 100: 2, 120: 2, 160: 2}[width]


def test_a_short_line_has_a_bar_beside_it(terminal: Terminal) -> None:
    live = Live(Lasting(terminal))
    live.console.print(Bar(5, 10, "loss 0.5000", "900 tokens/s", "5 s left"))
    (line,) = terminal.screen
    assert len(line) == 80
    assert line.startswith("  step 5/10  ━━━━")
    assert line.endswith("  loss 0.5000  900 tokens/s  5 s left")


# --- what a pipe keeps as lines ------------------------------------------------------------------


def test_where_a_default_came_from_and_why_a_stage_begins_anew_stay(
    live: Live, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found as a run begins is said before the engine starts, and stays above that."""
    anew = "from the beginning: sft: seed 1 -> 2"
    monkeypatch.setattr(runner, "restarted", lambda *_: [anew])
    monkeypatch.setattr(runner, "decisions", lambda *_: [])
    monkeypatch.setattr(runner.content, "make_cache_dir", lambda: None)
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(pins=["exact_match: max_tokens 16: 95% of the answers fit"]),
        reporter=live,
        kept=SimpleNamespace(runs=list, home=None),
        scope=None,
        spending=SimpleNamespace(prices=None, start=lambda: live.doing("starting the engine")),
        directory=SimpleNamespace(save=lambda: None),
        interrupts=SimpleNamespace(noticed=None),
        _preflight=lambda: live.doing("looking at the data"),
    )
    run._estimate = lambda: runner._Run._estimate(run)
    with pytest.raises(AttributeError, match="_connected"):
        runner._Run._work(run, None)  # type: ignore[arg-type]
    live.close()
    assert terminal.screen == [
        "  exact_match: max_tokens 16: 95% of the answers fit",
        f"  {anew}",
    ]

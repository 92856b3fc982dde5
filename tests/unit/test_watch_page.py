"""The page of `ptl watch` in a browser: a finished run is replayed, at two widths."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes.store import RunRecord, StageRecord, Store
from posttrain_recipes.watch import server
from posttrain_recipes.watchlog import WatchLog, watch_path
from tests import browser as browsers
from tests.browser import Browser

pytestmark = pytest.mark.skipif(bool(browsers.MISSING), reason=browsers.MISSING)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The page of a run of two stages, the first of which has a filmstrip and rollouts."""
    record = RunRecord(
        id="demo-1", recipe="demo", fingerprint="f", model="ptl/nano", engine="local",
        path="demo.yaml", preset=None, seed=0, resolved={"description": HOSTILE},
        created="2026-01-02T03:04:05+00:00", status="finished",
        stages=[
            StageRecord("rl", "f1", "grpo", {"start": "base"}, status="finished", total_steps=4),
            StageRecord("dpo@beta=0.1,seed=1", "f2", "dpo", {"start": "f1"}, status="waiting"),
        ],
    )  # fmt: skip
    with Store(tmp_path).open(record) as directory:
        directory.save()
        log = WatchLog(watch_path(directory.path, "rl"), pytest.fail)
        for step in range(5):
            said = {"prompt": "2+2?", "answer": "4", "reply": f"reply of {step}", "cut": False}
            replies = [said | {"right": step > 2}]
            if step == 4:  # a run that goes on may ask more than it did
                replies += [said | {"prompt": "3+3?", "reply": "six"}]
            log.add("film", step=step, source="the eval held", replies=replies)
            if step:
                log.add(
                    "step", step=step, total=4, metrics={"reward/mean": step / 4, "kl": math.nan}
                )
                tokens = {
                    "tokens": ["2", HOSTILE, "x"],
                    "numbers": {"advantage": [0.5, -0.5, None]},
                }
                about = {"prompt": "p", "length": 3, "reward": 1, "advantage": 0.5}
                log.add(
                    "rollouts", step=step, rollouts=[{**tokens, **about, "ended": "max_tokens"}]
                )
        found = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9, "share": True}
        log.add("eval", when="before", step=0, metrics={"held": found})
        nothing = found | {"value": math.nan, "low": math.nan, "high": math.nan}
        log.add("eval", when="after", step=4, metrics={"none": nothing})
        single = found | {"low": math.nan, "high": math.nan, "count": 1}
        log.add("eval", when="after", step=4, metrics={"single": single})
    token, sock = "the-token", server.listening()
    made = server.server(tmp_path, "demo-1", token, sock)
    made.install_signal_handlers = lambda: None
    thread = threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield server.address(sock, token)
    made.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browsers.browser() as made:
        yield made


def test_a_finished_run_is_replayed(window: Browser, url: str) -> None:
    window.size(1280, 900)
    window.open(url)
    window.until("return document.body.dataset.ready")
    window.until("return document.querySelector('td.now') !== null")
    assert window.run("return location.search") == ""
    text = "return document.querySelector(arguments[0]).textContent"
    assert window.run(text, "#run") == "demo-1"
    assert window.run(text, "#at") == "step 4 of 4"
    assert window.run(text, "td.now") == "✓reply of 4"
    cells = (
        "return [...document.querySelectorAll('tr:last-child td')].map((one) => one.textContent)"
    )
    assert window.run(cells) == ["(not asked)"] * 4 + ["six"]
    assert window.run(text, ".stage.waiting span") == "beta=0.1,seed=1"

    move = "const s = document.getElementById('slider'); s.value = 2; s.oninput()"
    window.run(move)
    window.until("return document.querySelector('td.now').textContent === '✗reply of 2'")
    assert window.run("return document.querySelectorAll('td.later').length") == 4
    assert window.run(text, "#rollouts-step") == "of step 2"
    assert window.run(text, ".now-value") == "0.5 at step 2"
    assert "null" not in window.run(text, "body")

    # By keyboard as by mouse: numbers of a token, and the next one.
    window.run("document.querySelector('.token').focus()")
    assert "advantage 0.5" in window.run(text, "#tip")
    right = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
    window.run(f"document.activeElement.dispatchEvent({right})")
    assert "advantage -0.5" in window.run(text, "#tip")
    kinds = "return [...document.querySelectorAll('.token')].map((one) => one.className)"
    assert window.run(kinds) == ["token up", "token down", "token none"]
    assert "cut by" in window.run(text, "#rollouts")

    # What is no number is drawn as none.
    drawn = "return [...document.querySelectorAll('figure')].map((one) => [one.textContent.trim(), "
    figures = window.run(drawn + "one.querySelectorAll('.point, .whisker').length])")
    assert [(text.split()[0], marks) for text, marks in figures] == [
        ("held", 2), ("noneIt", 0), ("single", 1)
    ]  # fmt: skip
    window.run("const s = document.querySelector('#metric'); s.value = 'kl'; s.onchange()")
    window.until("return document.querySelector('#curve').textContent.includes('no number')")

    # What models and data wrote is text, and nothing runs.
    assert window.run("return document.images.length") == 0
    assert HOSTILE in window.run(text, "#about")
    for width in (1280, 390):
        window.size(width, 900)
        wide = window.until("return document.documentElement.scrollWidth")
        assert wide <= width
    # On a narrow page each prompt stands whole above its replies.
    seen = window.run(
        "const box = (one) => one.getBoundingClientRect().toJSON();"
        "return [document.querySelector('.prompt'), document.querySelector('td.now')].map(box)"
    )
    assert 0 <= seen[0]["left"] < seen[0]["right"] <= 390
    assert seen[0]["bottom"] <= seen[1]["top"]
    seen_now = "return document.querySelector('td.now')?.getBoundingClientRect().right <= 390"
    window.until(seen_now)
    for stage in (1, 0):  # one without a filmstrip, and back
        window.run(f"document.querySelectorAll('.stage')[{stage}].click()")
        window.until(f"return document.querySelectorAll('.stage')[{stage}].ariaPressed === 'true'")
    window.until(seen_now)
    assert window.log() == []

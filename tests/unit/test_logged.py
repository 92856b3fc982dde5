"""Warnings that are logged while a stage works are its own; others go where they went."""

from __future__ import annotations

import logging
import threading

import pytest

from posttrain_recipes.running import logged

log = logging.getLogger("posttrain_recipes.methods.some")


def test_a_stage_is_told_each_text_once_without_its_name() -> None:
    told: list[str] = []
    with logged.kept("both", told.append):
        for text in ("stage 'both': lost", "lost", "more", "more"):
            log.warning(text)
        log.info("nothing")
        with logged.kept("inner", lambda text: told.append(f"inner {text}")):
            log.warning("lost")
        for number in range(2 * logged.MOST):
            log.warning("record %d", number)
    log.warning("after")
    assert told[:4] == ["lost", "more", "inner lost", "record 0"]
    assert told[-2] == f"record {logged.MOST - 3}"
    assert "later ones are not told" in told[-1]


def test_other_threads_leave_theirs_to_the_one_that_works() -> None:
    import contextvars

    told: list[tuple[str, int]] = []
    here = threading.get_ident()
    with logged.kept("rl", lambda text: told.append((text, threading.get_ident()))):
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(log.warning, "late"))
        thread.start()
        thread.join()
        assert told == []
    assert told == [("late", here)]


def test_without_a_stage_a_warning_is_printed_as_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged.kept("one", lambda text: None):
        pass
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.warning("to whom it may concern")
    assert capsys.readouterr().err == "to whom it may concern\n"

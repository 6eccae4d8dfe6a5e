import io
import re
import sys
import time

import pytest

from googlenet_flax.runtime import progress
from googlenet_flax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(total_steps=100, start_step=40, batch_size=8) as progress:
        progress.advance()
        progress.report(41, loss=1.25, images_per_second=4.0)
        progress.say("an evaluation")
    return stderr.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    shown = show(monkeypatch, Terminal())
    assert "41/100" in shown and "loss 1.2500 4.0 images/s" in shown
    assert "an evaluation" in capsys.readouterr().out


def test_a_file_gets_plain_lines(monkeypatch, capsys):
    shown = show(monkeypatch, io.StringIO())
    # 59 steps of 8 images at 4 images/s are 118 s.
    assert shown == "step 41/100  loss 1.2500  4.0 images/s  ETA 0:01:58\n"
    assert capsys.readouterr().out == "an evaluation\n"


def test_the_rate_leaves_out_what_came_before_the_clock_was_restarted(monkeypatch):
    now = iter([0.0, 100.0, 102.0, 102.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = Progress(total_steps=10, start_step=0, batch_size=8)
    progress.restart_clock(1)
    assert progress.images_per_second(3) == pytest.approx(2 * 8 / 2.0)
    assert progress.images_per_second(1) is None


def test_a_long_call_says_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(progress, "CLOCK_SECONDS", 0.01)
    assert progress.call_with_clock("a task", lambda: time.sleep(0.5) or 7) == 7
    assert re.match(r"googlenet_flax: a task: \d+ s\n", capsys.readouterr().err)
    with pytest.raises(ZeroDivisionError):
        progress.call_with_clock("a task", lambda: 1 / 0)

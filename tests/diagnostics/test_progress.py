"""The display of progress."""

import io
import sys

import pytest

from sb3_agd.diagnostics.progress import track


class Terminal(io.StringIO):
    """Stream of a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track(range(3), "Plots", True)) == [0, 1, 2]
    assert "Plots: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()


def test_elsewhere_one_line_is_written_before_the_loop(capsys: pytest.CaptureFixture) -> None:
    items = iter(track(range(3), "Plots", True))
    assert next(items) == 0
    assert capsys.readouterr() == ("", "Plots (3)\n")
    assert list(items) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_written_if_progress_is_not_shown(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    assert list(track(range(3), "Plots", False)) == [0, 1, 2]
    assert written.getvalue() == ""

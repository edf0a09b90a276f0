"""What the tests of the benchmark suites share."""

from pathlib import Path

import pytest
from small_suite import SMALL, outcome

from benchmarks import run
from benchmarks.run import Outcome
from benchmarks.suite import Run


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yml"
    file.write_text(SMALL)
    return file


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were started; each gives returns that tell its seed."""
    names = []

    def execute(one: Run) -> Outcome:
        names.append(str(one))
        return outcome([0.0, one.seed])

    monkeypatch.setattr(run, "execute", execute)
    return names

"""Commands where an optional package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE, SETTINGS

ENV = "Hopper-v5"
# Hides a package before anything is imported, and runs the given commands one after another
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from sb3_agd.zoo.cli import main

for command in sys.argv[2:]:
    sys.argv = ["sb3-agd", *command.split()]
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def run_without(package: str, folder: Path, *commands: str) -> "subprocess.CompletedProcess[str]":
    """Run commands as if a package were not installed; their exit codes or complaints go to stderr."""
    command = [sys.executable, "-c", WITHOUT, package, *commands]
    environment = {**os.environ, **SETTINGS}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def complaint(command: str, package: str) -> str:
    """What a command answers without a package."""
    return f'sb3-agd {command}: error: {package} is not installed: pip install "sb3_agd[zoo]"'


def test_help_needs_no_extra_but_imagine_does(tmp_path: Path) -> None:
    done = run_without(
        "matplotlib", tmp_path, "imagine --help", "plot-from-file --help", f"imagine --env {ENV} --model model.zip"
    )
    assert "usage: sb3-agd imagine" in done.stdout and "usage: sb3-agd plot-from-file" in done.stdout
    assert done.stderr.splitlines()[-3:] == ["0", "0", complaint("imagine", "matplotlib")]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("seaborn", f"all-plots -a ppo -e {ENV} -f logs"),
        ("tensorboard", f"train --algo agdppo --env {ENV} --eval-freq -1 -tb tensorboard"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(package: str, command: str, tmp_path: Path) -> None:
    done = run_without(package, tmp_path, command)
    assert done.stderr.splitlines()[-1] == complaint(command.split()[0], package)
    assert "Traceback" not in done.stderr

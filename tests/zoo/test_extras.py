"""Commands where single packages of an extra are not installed. Without all of them: tests/test_dependencies.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import SMALL
from processes import PATIENCE, SETTINGS

from sb3_agd import AGDPPO

ENV = "Hopper-v5"
# Hides packages before anything is imported, and runs a command
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))
from sb3_agd.zoo.cli import main

sys.argv[0] = "sb3-agd"
main()
"""


def run_without(packages: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as if packages were not installed."""
    command = [sys.executable, "-c", WITHOUT, packages, *arguments]
    environment = {**os.environ, **SETTINGS}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_imagine_needs_neither_rl_zoo_nor_moviepy_for_an_agent_trained_without_them(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL, gamma=0.5).learn(64).save(tmp_path / "model")
    done = run_without(
        "rl_zoo3 huggingface_sb3 optuna yaml moviepy",
        tmp_path,
        *("imagine", "--env", "Pendulum-v1", "--model", "model.zip", "--n-starts", "2"),
    )
    assert done.returncode == 0, done.stderr
    assert 'No video: moviepy is not installed: pip install "sb3_agd[zoo]"' in done.stderr
    assert (tmp_path / "imagined" / "report.json").is_file()


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("seaborn", f"all-plots -a ppo -e {ENV} -f logs"),
        ("tensorboard", f"train --algo agdppo --env {ENV} --eval-freq -1 -tb tensorboard"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(package: str, command: str, tmp_path: Path) -> None:
    done = run_without(package, tmp_path, *command.split())
    answer = f'sb3-agd {command.split()[0]}: error: {package} is not installed: pip install "sb3_agd[zoo]"'
    assert done.stderr.splitlines()[-1] == answer
    assert "Traceback" not in done.stderr

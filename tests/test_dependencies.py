"""The package with nothing but what setup.py requires: extras are hidden, or not installed at all (`make oldest`)."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import PATIENCE, SETTINGS

from sb3_agd.zoo.cli import COMMANDS

README = Path(__file__).parents[1] / "README.md"
# Arguments that a command needs before it looks for anything else
ARGUMENTS = {
    "imagine": "--env Pendulum-v1 --model model.zip",
    "plot-from-file": "-i results",
    "load-from-hub": "--algo agdppo --env Pendulum-v1 -f logs",
    "push-to-hub": "--algo agdppo --env Pendulum-v1 -f logs -orga me",
}
# Runs the given commands one after another
RUN_COMMANDS = """
from sb3_agd.zoo.cli import main

for command in sys.argv[1:]:
    sys.argv = ["sb3-agd", *command.split()]
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def required(name: str) -> set[str]:
    """A distribution and all that it requires, without extras."""
    found: set[str] = set()
    waiting = [canonicalize_name(name)]
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        requirements = map(Requirement, requires(name) or [])
        needed = [needs for needs in requirements if needs.marker is None or needs.marker.evaluate({"extra": ""})]
        waiting += [canonicalize_name(needs.name) for needs in needed]
    return found


@pytest.fixture(scope="module")
def hidden() -> list[str]:
    """Modules of all that is installed and not required."""
    core = required("sb3_agd")
    owners = packages_distributions()
    return [module for module, names in owners.items() if not core & {canonicalize_name(name) for name in names}]


def run_alone(hidden: list[str], folder: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code as if the hidden modules were not installed."""
    hide = f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n"
    command = [sys.executable, "-c", hide + code, *arguments]
    environment = {**os.environ, **SETTINGS}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_the_example_of_the_readme_needs_no_extra(hidden: list[str], tmp_path: Path) -> None:
    assert {"pytest", "rich"} <= {*hidden}
    example = re.search(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert example is not None
    # MuJoCo is an extra; the shortest training after which the world model is there
    code, n_tasks = re.subn(r'"\w+-v\d"', '"Pendulum-v1"', example[1])
    code, n_trainings = re.subn(r"learn\([\d_]+", "learn(1024", code)
    assert n_tasks >= 1 and n_trainings == 1
    code += "env.reset()\nprint(model.imagine(env.get_original_obs()))\n"
    code += "import sb3_agd\nfigures = {'ImaginationCallback', 'imagination_report'}\n"
    code += "assert all(getattr(sb3_agd, name) for name in {*sb3_agd.__all__} - figures)\n"
    done = run_alone(hidden, tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Segments(1 of horizon 8, ")


def test_each_command_that_lacks_an_extra_says_so_in_one_line(hidden: list[str], tmp_path: Path) -> None:
    done = run_alone(hidden, tmp_path, RUN_COMMANDS, *(f"{name} {ARGUMENTS.get(name, '')}" for name in COMMANDS))
    answers = done.stderr.splitlines()
    assert len(answers) == len(COMMANDS), done.stderr
    for name, answer in zip(COMMANDS, answers, strict=True):
        assert re.fullmatch(rf'sb3-agd {name}: error: \w+ is not installed: pip install "sb3_agd\[zoo\]"', answer)


def test_help_needs_no_extra_but_for_scripts_of_the_zoo(hidden: list[str], tmp_path: Path) -> None:
    own = [name for name, command in COMMANDS.items() if command.add_arguments is not None]
    done = run_alone(hidden, tmp_path, RUN_COMMANDS, "--help", *(f"{name} --help" for name in own), "train --help")
    *codes, answer = done.stderr.splitlines()
    assert codes == ["0"] * (1 + len(own)), done.stderr
    assert answer == 'sb3-agd train: error: rl_zoo3 is not installed: pip install "sb3_agd[zoo]"'
    assert all(f"usage: sb3-agd {name} " in done.stdout for name in own)

"""Files of trained agents to release."""

import re
import shlex
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from processes import run_here
from small_suite import call

from benchmarks import release
from benchmarks.release import TASKS, is_finished, latest_agent, train

CHEAP_TASK = "CartPole-v1"
STEPS = 256


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command line of a short run."""
    monkeypatch.setattr(release, "EVALUATION_STEPS", 500)
    monkeypatch.setattr(release, "VIDEO_STEPS", 20)
    places = ["--logs", str(tmp_path / "logs"), "--folder", str(tmp_path / "agents")]
    return ["--tasks", CHEAP_TASK, "--steps", str(STEPS), "--seed", "3", "--video", *places]


def test_an_agent_is_trained_and_its_file_returns_what_its_card_says(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(release, monkeypatch, *arguments)
    (file,) = (tmp_path / "agents").iterdir()
    assert f"{file}: return " in capsys.readouterr().out
    with ZipFile(file) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / f"agdppo-{CHEAP_TASK}"
    assert {each.name for each in folder.iterdir()} == {
        *(
            f"agdppo-{CHEAP_TASK}.zip",
            "args.yml",
            "config.yml",
            "env_kwargs.yml",
            "train_eval_metrics.zip",
            "README.md",
            "replay.mp4",
        )
    }
    card = (folder / "README.md").read_text()
    assert f"| training | {STEPS} steps, seed 3 |" in card
    load, evaluate = (re.search(rf"^sb3-agd ({command})$", card, re.MULTILINE) for command in ("load.*", "enjoy.* -n .*"))
    assert load is not None and evaluate is not None
    run_here(folder, *shlex.split(load[1]))
    said = re.search(r"^\| return \| (\S+ \+/- \S+), .* of (\d+) episodes", card, re.MULTILINE)
    assert said is not None
    out = run_here(folder, *shlex.split(evaluate[1]))
    assert f"{said[2]} Episodes\nMean reward: {said[1]}\n" in out
    # Not the episodes that it was trained in
    assert "--seed 40000" in evaluate[1]


# The last one has no settings of its own
@pytest.mark.parametrize("task", [*TASKS, "Acrobot-v1"])
def test_what_is_finished_is_not_trained_again(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_finished(latest_agent(task, tmp_path), STEPS)
    command = ["train", "--algo", "agdppo", "--env", task, "--device", "cpu", "--eval-freq", "-1", "--verbose", "0"]
    run_here(tmp_path, *command, "-n", str(STEPS), "-f", str(tmp_path))
    agent = train(task, STEPS, 0, tmp_path)
    assert f"{task} was trained before" in capsys.readouterr().out
    assert agent.file == tmp_path / "agdppo" / f"{task}_1" / f"{task}.zip"
    assert not is_finished(agent, STEPS + 1)
    settings = agent.settings / "config.yml"
    settings.write_text(yaml.dump({**yaml.unsafe_load(settings.read_text()), "synthetic_ratio": 1}))
    assert not is_finished(agent, STEPS)


def test_a_training_that_fails_ends_the_script(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments[arguments.index(CHEAP_TASK)] = "CartPol-v1"
    with pytest.raises(SystemExit, match="Training on CartPol-v1 did not come to its end"):
        call(release, monkeypatch, *arguments)
    assert not (tmp_path / "agents").exists()

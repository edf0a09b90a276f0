"""The command line: help, refusals, and what it leaves alone."""

import itertools
import runpy
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sb3_agd.zoo.cli import COMMANDS, missing_extra, print_mujoco_warning
from sb3_agd.zoo.registration import register

# More than any study here has
STUDY = ["--storage", "study.log", "--trial-id", "7"]
PUSH = ["push-to-hub", "--algo", "agdppo", "--env", "Hopper-v5", "-f", "logs", "-orga", "me"]


def test_help_has_a_line_for_every_command(command_line: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line("--help")
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.split() == [name, *command.summary.split()]], name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_lists_its_options(command: str, command_line: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(command, "--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage:")
    algorithms = COMMANDS[command].module.startswith("rl_zoo3.") and "plots" not in COMMANDS[command].module
    assert ("agdppo" in out and "trpo" in out) or not algorithms


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.add_arguments is None])
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_help_of_a_script_of_the_zoo_is_what_it_prints_itself(
    command: str, command_line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register()
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module(COMMANDS[command].module, run_name="__main__")
    _, _, theirs = capsys.readouterr().out.partition("options:")
    with pytest.raises(SystemExit):
        command_line(command, "--help")
    _, _, ours = capsys.readouterr().out.partition("options:")
    assert ours == theirs != ""


HELP = """
import sys
from sb3_agd.zoo.cli import COMMANDS, main

for name in ([], *([name] for name in COMMANDS)):
    sys.argv = ["sb3-agd", *name, "--help"]
    try:
        main()
    except SystemExit:
        pass
print({"torch", "stable_baselines3", "rl_zoo3"} & sys.modules.keys(), file=sys.stderr)
"""


def test_help_does_not_wait_for_imports() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["set()"]
    assert done.stdout.count("usage: sb3-agd") == 1 + len(COMMANDS)


LEFT_ALONE = """
import argparse, importlib, runpy, subprocess, sys
import rl_zoo3.exp_manager
import rl_zoo3.plots.score_normalization as scores
from stable_baselines3.common.vec_env import VecNormalize

modules = [importlib.import_module(name) for name in ("huggingface_sb3.push_to_hub", "rl_zoo3.plots.plot_from_file")]
others = [argparse.ArgumentParser, VecNormalize, subprocess, rl_zoo3.exp_manager, *modules]
before = [dict(vars(other)) for other in others], dict(scores.min_max_score_per_env)

from sb3_agd.zoo.cli import COMMANDS, main

for name, command in COMMANDS.items():
    # The end of a command that has imported what it needs
    sys.argv = ["sb3-agd", name, "--nothing"]
    try:
        main()
    except SystemExit:
        pass
    importlib.import_module(command.module) if command.add_arguments else None

after = [dict(vars(other)) for other in others], dict(scores.min_max_score_per_env)
changed = [name for old, new in zip(before[0], after[0]) for name in old | new if old.get(name) is not new.get(name)]
# A name that the zoo's `train` builds its experiments from, for lack of a registry
assert changed == ["ExperimentManager"], changed
assert before[1] == after[1]
"""


def test_commands_leave_other_packages_as_they_are() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "n_threads"),
    [
        ("--algo agdppo", ["1"]),
        ("--algo=agdppo", ["1"]),
        ("--algo agdppo --num-threads 2", ["2"]),
        ("--algo agdppo --num-threads=2", []),
        ("--algo ppo", []),
        ("--algo ppo -f agdppo", []),
        ("-n 32", []),
    ],
)
def test_agdppo_trains_on_one_thread_unless_told_otherwise(
    arguments: str, n_threads: list[str], command_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: seen.extend(sys.argv))
    command_line("train", *arguments.split())
    assert [after for option, after in itertools.pairwise(seen) if option == "--num-threads"] == n_threads


def test_modules_in_the_present_folder_are_found_after_installed_ones(
    command_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with the script `sb3-agd`
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_tasks.py").touch()
    (tmp_path / "rl_zoo3.py").write_text("raise ImportError('shadowed')")
    with pytest.raises(SystemExit, match=r"Own-v0 not found in gym registry"):
        command_line("train", "--gym-packages", "own_tasks", "rl_zoo3", "--env", "Own-v0")


def test_a_resumed_run_keeps_its_seed(command_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: None)
    settings = tmp_path / "Hopper-v5" / "args.yml"
    settings.parent.mkdir()
    settings.write_text(yaml.dump(OrderedDict(seed=123)))
    train = ["train", "--algo", "agdppo", "--env", "Hopper-v5", "-i"]
    for rest, added in (
        (["rl_model_64_steps.zip"], ["--seed", "123"]),
        (["rl_model_64_steps.zip", "--seed", "7"], []),
        (["Hopper-v5.zip"], []),
        (["rl_model_64_steps.zip", "--env", "Ant-v5"], []),
        (["rl_model_64_steps.zip", "--algo", "ppo"], []),
    ):
        arguments = [*train, str(tmp_path / rest[0]), *rest[1:], "--num-threads", "1"]
        command_line(*arguments)
        assert sys.argv[1:] == [*arguments[1:], *added]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--algo", "agdpo"], "invalid choice: 'agdpo'"),
        (["train", "--algo", "agdppo", "--env", "Hoper-v5"], "Hoper-v5 not found in gym registry, you maybe meant Hopper-v5?"),
        (["train", "--algo", "agdppo", "-params", "horizn:3"], "unexpected keyword argument 'horizn'"),
        (["train", "--n-time-steps", "3"], "unrecognized arguments: --n-time-steps 3"),
        (["train", "-params", "guidance:eag"], "text in -params needs quotes of its own"),
        (["train", "--algo", "agdppo", "-params", "horizon:0"], "`horizon` must be an integer of at least 1, not 0"),
        (["train", "--algo", "agdppo", "-conf", "nowhere.yml"], "No such file or directory: 'nowhere.yml'"),
        (["train", "--algo", "sac", "--env", "CartPole-v1"], "The algorithm only supports"),
        (["train", "--gym-packages", "nowhere"], "No module named 'nowhere'"),
        (["train", "--env", "Pendulum-v1", "--env-kwargs", "mass:3"], "got an unexpected keyword argument 'mass'"),
        (
            ["train", "--algo", "agdppo", *STUDY, "--study-name", "nothing"],
            "study.log holds no study 'nothing' with a trial 7",
        ),
        (["train", "--algo", "agdppo", *STUDY, "--study-name", "empty"], "study.log holds no study 'empty' with a trial 7"),
        (["enjoy", "--algo", "agdppo", "--env", "Hoper-v5", "-f", "logs"], "agdppo folder was not found"),
        (["train", "--algo", "agdppo", "--device", "gpu"], "argument --device: there is no 'gpu' here"),
        (["train", "--algo", "agdppo", "-i", "nope.zip"], "must be a valid path to a .zip file"),
        (["enjoy", "--algo", "agdppo", "--device", "cuda:one"], "argument --device: there is no 'cuda:one' here"),
        (["imagine", "--env", "Hopper-v5", "--model", "nope.zip"], "argument --model: there is no file nope.zip"),
        (["imagine", "--env", "Hopper-v5", "--model", "nope"], "argument --model: there is no file nope"),
        (
            ["imagine", "--env", "Hopper-v5", "--model", "nope", "--env-kwargs", "mass:heavy"],
            "argument --env-kwargs: mass:heavy",
        ),
        (["imagine", "--env", "Hopper-v5"], "the following arguments are required: --model"),
        (["plot-from-file", "-i", "nowhere"], "No such file or directory: 'nowhere.pkl'"),
        (["plot-from-file", "-i", "nowhere.pkl"], "No such file or directory: 'nowhere.pkl'"),
        (["benchmark", "-f", "nowhere"], "No such file or directory: 'nowhere'"),
        (["benchmark", "-f", "."], "No agent in . was evaluated"),
        ([*PUSH], "folder was not found"),
        (
            ["benchmark", "-f", ".", "--", "--load-best"],
            "options after `--` must not choose another agent (--load-best)",
        ),
        (["benchmark", "--", "--seed", "1", "--load-checkpoint", "100"], "another agent (--load-checkpoint)"),
        (["benchmark", "--", "--load-l", "--stochastic"], "another agent (--load-last-checkpoint)"),
        (["benchmark", "--", "--env", "Ant-v5", "-f", "others"], "another agent (--env, --folder)"),
        (
            [*PUSH, "--", "--exp-id=3"],
            "another agent (--exp-id): push-to-hub has --exp-id and --load-best itself, to be given before `--`",
        ),
        ([*PUSH, "--", "--stochastic", "--env-kwargs", "mass:3"], "folder was not found"),
    ],
)
def test_what_does_not_exist_is_refused_without_traceback(
    arguments: list[str],
    complaint: str,
    command_line: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    optuna.create_study(storage=storage, study_name="empty")
    with pytest.raises(SystemExit) as end:
        command_line(*arguments)
    assert end.value.code not in (0, None)
    message = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err.removesuffix("\n")
    # argparse, which the zoo's scripts use as it is, puts its usage first
    *before, line = message.splitlines()
    assert complaint in line
    assert not before or before[0].startswith("usage:")


def test_a_missing_package_is_told_from_other_errors() -> None:
    lacking = ModuleNotFoundError("No module named 'seaborn.objects'", name="seaborn.objects")
    assert missing_extra(lacking) == 'seaborn is not installed: pip install "sb3_agd[zoo]"'
    # As the zoo raises it
    assert missing_extra(ImportError("please install W&B via `pip install wandb`")) == (
        'wandb is not installed: pip install "sb3_agd[wandb]"'
    )
    for error in (
        ModuleNotFoundError("No module named 'nowhere'", name="nowhere"),
        ImportError("cannot import name 'nothing' from 'matplotlib'", name="matplotlib"),
        ValueError("matplotlib"),
    ):
        assert missing_extra(error) is None


def test_a_warning_of_mujoco_is_shown_once_unless_nobody_can_act_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("Nan in QACC", "compiler attribute 'settotalmass' is deprecated and will be removed", "Nan in QACC"):
        print_mujoco_warning(message)
    assert capsys.readouterr().err == "MuJoCo: Nan in QACC\n"

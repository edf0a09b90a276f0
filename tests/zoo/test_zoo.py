"""AGDPPO's place in RL-Zoo: settings, search space, reference scores, the hub."""

import argparse
import inspect
import itertools
import math
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import rl_zoo3
import torch as th
import yaml
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.agdppo import ResumableCheckpointCallback
from sb3_agd.zoo import register
from sb3_agd.zoo.cli import COMMANDS, missing_extra, print_mujoco_warning
from sb3_agd.zoo.experiment_manager import HYPERPARAMS, AGDExperimentManager, find_config, passed_through_package
from sb3_agd.zoo.plots import REFERENCE_SCORES, REFERENCES, load_results, normalized_scores
from sb3_agd.zoo.search_space import sample_agdppo_params

MUJOCO = ["HalfCheetah", "Hopper", "Walker2d", "Reacher", "Ant", "Swimmer", "InvertedPendulum", "InvertedDoublePendulum"]
ENVIRONMENTS = [*(f"{name}-v5" for name in MUJOCO), "Pendulum-v1", "CartPole-v1"]
SHIPPED = {
    "agdppo": ENVIRONMENTS,
    "agdppo_paper": ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Reacher-v5"],
    "ppo": ENVIRONMENTS,
    "trpo": ENVIRONMENTS,
    "sac": [env_id for env_id in ENVIRONMENTS if env_id != "CartPole-v1"],
}
# Policy settings that runs of AGDPPO speak for
MEASURED = {("agdppo", "Hopper-v5", key) for key in ("gamma", "gae_lambda", "policy_kwargs")}
MEASURED |= {("agdppo", "Walker2d-v5", "clip_range"), ("agdppo", "HalfCheetah-v5", "policy_kwargs")}
# What the network, the advantages and the policy loss are made of
POLICY_SETTINGS = ("normalize", "policy_kwargs", "gamma", "gae_lambda", "clip_range", "vf_coef", "max_grad_norm")
register()
# More than any study here has
STUDY = ["--storage", "study.log", "--trial-id", "7"]


class OwnCheckpoints(CheckpointCallback):
    def __init__(self, save_freq: int):
        super().__init__(save_freq, "own")


def shipped(name: str) -> dict[str, dict[str, Any]]:
    """Settings of all tasks in a shipped file."""
    return yaml.safe_load((HYPERPARAMS / f"{name}.yml").read_text())


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
    sys.argv = ["sb3-agd", name, "--help"]
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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
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
        (["push-to-hub", "--algo", "agdppo", "--env", "Hopper-v5", "-f", "logs", "-orga", "me"], "folder was not found"),
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


@pytest.mark.parametrize(("name", "env_id"), [(name, env_id) for name in SHIPPED for env_id in SHIPPED[name]])
def test_shipped_settings_build_their_algorithm(name: str, env_id: str, tmp_path: Path) -> None:
    algo = name.removesuffix("_paper")
    config = f"{name}.yml" if name == "agdppo_paper" else None
    manager = AGDExperimentManager(
        argparse.Namespace(), algo, env_id, str(tmp_path), eval_freq=-1, verbose=0, device="cpu", config=config
    )
    assert manager.config == str(HYPERPARAMS / f"{name}.yml")
    experiment = manager.setup_experiment()
    assert experiment is not None
    assert manager.n_timesteps > 0
    if isinstance(experiment[0], AGDPPO):
        assert isinstance(experiment[0].world_model_learning_rate, float)
    experiment[0].env.close()


@pytest.mark.parametrize(("algo", "n_tasks"), [("ppo", 10), ("trpo", 7), ("sac", 6)])
def test_baselines_have_the_values_of_the_zoo_wherever_it_has_any(algo: str, n_tasks: int) -> None:
    theirs = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml").read_text())
    compared = set()
    for env_id, settings in shipped(algo).items():
        for version in ("v1", "v2", "v4"):
            for key, value in theirs.get(f"{env_id.split('-')[0]}-{version}", {}).items():
                assert settings[key] == value, (env_id, key)
                compared.add(env_id)
    assert len(compared) == n_tasks


@pytest.mark.parametrize("name", ["agdppo", "agdppo_paper"])
def test_agdppo_shares_the_policy_settings_of_ppo(name: str) -> None:
    baseline = shipped("ppo")
    for env_id in SHIPPED[name]:
        ours, theirs = shipped(name)[env_id], baseline[env_id]
        for key in POLICY_SETTINGS:
            if (name, env_id, key) not in MEASURED:
                assert ours.get(key) == theirs.get(key), (env_id, key)


def test_ratio_and_scale_may_fall_linearly() -> None:
    initials = {"synthetic_ratio": 16, "guidance_scale": 0.15, "world_model_learning_rate": 3e-3, "learning_rate": 3e-4}
    settings = {name: f"lin_{initial}" for name, initial in initials.items()} | {"gamma": 0.9}
    settings = AGDExperimentManager._preprocess_schedules(settings)
    for name, initial in initials.items():
        assert [settings[name](progress) for progress in (1.0, 0.5, 0.0)] == [initial, initial / 2, 0]
    AGDPPO("MlpPolicy", "CartPole-v1", **settings)
    assert AGDExperimentManager._preprocess_schedules({"synthetic_ratio": 8}) == {"synthetic_ratio": 8}
    with pytest.raises(ValueError, match=r"`synthetic_ratio` must be a number, or text such as lin_16.*not 'cos_16'"):
        AGDExperimentManager._preprocess_schedules({"synthetic_ratio": "cos_16"})


@pytest.mark.parametrize(("fault", "ours"), [("policy", False), ("update", False), ("rule", True)])
def test_an_error_is_this_packages_only_if_its_code_was_at_work(fault: str, ours: bool) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", n_steps=32, world_model_warmup=0, termination_fn=lambda *_: np.zeros(3))
    if fault == "update":
        model.vf_coef, model.real_steps_per_update, model.termination_fn = math.nan, 8, None
        model._setup_model()
    if fault == "policy":
        # As after an update with hyperparameters that make it diverge
        model.policy.load_state_dict(
            {name: th.full_like(tensor, th.nan) for name, tensor in model.policy.state_dict().items()}
        )
    with pytest.raises(ValueError, match="`termination_fn`" if fault == "rule" else "to satisfy the constraint") as error:
        model.learn(64)
    assert passed_through_package(error.value.__traceback__) == ours


def test_a_users_own_checkpoints_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "CartPole-v1": {"n_timesteps": 64, "policy": "MlpPolicy", "callback": [{"test_zoo.OwnCheckpoints": {"save_freq": 9}}]}
    }
    arguments = argparse.Namespace(save_replay_buffer=False)
    manager = AGDExperimentManager(
        arguments, "agdppo", "CartPole-v1", str(tmp_path), config="own.yml", save_freq=32, eval_freq=-1
    )
    (tmp_path / "own.yml").write_text(yaml.safe_dump(settings))
    manager.setup_experiment()
    assert [type(callback) for callback in manager.callbacks] == [OwnCheckpoints, ResumableCheckpointCallback]


def test_interrupted_processes_do_not_cost_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AGDExperimentManager(argparse.Namespace(), "agdppo", "CartPole-v1", str(tmp_path))

    def close() -> None:
        raise BrokenPipeError("these processes have ended")

    def interrupted(*_: Any) -> None:
        close()

    def failed(*_: Any) -> None:
        try:
            raise RuntimeError("a process has died")
        finally:
            close()

    def disconnected(*_: Any) -> None:
        raise ConnectionError("a callback has lost its server")

    # By the class itself: the zoo's name for it is ours once AGDPPO is registered
    (zoos,) = AGDExperimentManager.__bases__
    monkeypatch.setattr(zoos, "learn", interrupted)
    manager.learn(PPO("MlpPolicy", "CartPole-v1"))
    for learn, error in ((failed, RuntimeError), (disconnected, ConnectionError)):
        monkeypatch.setattr(zoos, "learn", learn)
        with pytest.raises(error, match=r"a .* has"):
            manager.learn(PPO("MlpPolicy", "CartPole-v1"))


def test_the_users_file_comes_first_and_the_zoos_last(tmp_path: Path) -> None:
    assert find_config("own.yml", "ppo", "Hopper-v5") == "own.yml"
    assert find_config("own.package", "agdppo", "Hopper-v5") == "own.package"
    assert find_config("agdppo_paper.yml", "agdppo", "Hopper-v5") == str(HYPERPARAMS / "agdppo_paper.yml")
    assert find_config(None, "ppo", "Hopper-v5") == str(HYPERPARAMS / "ppo.yml")
    assert find_config(None, "ppo", "MountainCar-v0") is None
    assert find_config(None, "a2c", "Hopper-v5") is None
    # The zoo has no file for it
    assert find_config(None, "agdppo", "MountainCar-v0") == str(HYPERPARAMS / "agdppo.yml")


def test_sampled_settings_are_plain_arguments_of_the_algorithm() -> None:
    arguments = inspect.signature(AGDPPO).parameters
    own = set(arguments) - set(inspect.signature(PPO).parameters)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        sampled = sample_agdppo_params(trial, 3, 1, {})
        assert set(sampled) <= set(arguments)
        assert {name: value for name, value in trial.params.items() if name in own} == {
            name: value for name, value in sampled.items() if name in own
        }
        assert rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER["agdppo"](trial.params) == sampled
        AGDPPO("MlpPolicy", "Pendulum-v1", device="cpu", **sampled)


TASK_SCORES = {"HalfCheetah-v5": (-274.0, 5800.0), "Walker": (1.0, 3500.0), "Reacher": (-43.4, -4.1)}


def write_results(file: Path, methods: dict[str, dict[str, np.ndarray]]) -> None:
    """Write returns of shape (n_evaluations, n_runs), by method and task, as `all-plots` does."""
    results: dict[str, Any] = {}
    for method, tasks in methods.items():
        for task, returns in tasks.items():
            results.setdefault(task, {})[method] = {
                "timesteps": np.arange(len(returns)) + 1,
                "mean": returns.mean(1),
                "std_error": returns.std(1),
                # One number if there is one run
                "last_evals": returns[-1].squeeze(),
                "mean_per_eval": returns,
            }
    results["results_table"] = {"headers": [], "value_matrix": [[]]}
    file.write_bytes(pickle.dumps(results))


def test_scores_are_normalised_by_those_of_the_mujoco_tasks(tmp_path: Path) -> None:
    ends = {task: np.array([[0.0, 0.0], [low, high]]) for task, (low, high) in TASK_SCORES.items()}
    write_results(tmp_path / "results.pkl", {"AGDPPO": ends})
    scores = normalized_scores(load_results([str(tmp_path / "results")]), slice(-1, None))
    np.testing.assert_allclose(scores["AGDPPO"][..., 0], [[0.0] * 3, [1.0] * 3])


def test_every_figure_is_saved(tmp_path: Path, command_line: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    # Their numbers of runs differ
    for number in (1, 3):
        returns = {task: rng.uniform(low, high, (4, number)) for task, (low, high) in TASK_SCORES.items()}
        write_results(tmp_path / f"results_{number}.pkl", {f"METHOD-{number}": returns})
    command_line(
        *("plot-from-file", "-i", str(tmp_path / "results_1.pkl"), "--merge", str(tmp_path / "results_3"), "-l", "old", "new"),
        *("--skip-envs", "Reacher", "--boxplot", "--rliable", "--versus", "--iqm", "-o", str(tmp_path / "scores.png")),
    )
    figures = {file.stem.removeprefix("scores"): np.asarray(Image.open(file).convert("L")) for file in tmp_path.glob("*.png")}
    curves = {f"_curves_{task}" for task in ("HalfCheetah-v5", "Walker")}
    assert set(figures) == {"", "_boxplot", "_aggregates", "_profiles", "_versus", "_iqm"} | curves
    assert all((figure < 128).mean() > 0.005 for figure in figures.values())
    out = capsys.readouterr().out
    assert f"{returns['Walker'][-1].mean():.6f}"[:8] in out and "new" in out and "METHOD" not in out and "Reacher" not in out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--keep-envs", "Ant"], "Nothing is left to show: there are Walker, Hopper, CartPole with A, B"),
        (["--labels", "one"], "`--labels` must name these 2 methods, not 1: A, B"),
        (["--rliable"], "No reference scores of CartPole"),
        (["--iqm", "--skip-envs", "CartPole"], "B has no results on Walker"),
        (["--versus", "--skip-envs", "CartPole", "--keep-keys", "A"], "`--versus` needs two methods, there is A only"),
    ],
)
def test_what_cannot_be_plotted_is_named(options: list[str], complaint: str, tmp_path: Path, command_line: Any) -> None:
    returns = np.ones((2, 2))
    write_results(
        tmp_path / "results.pkl", {"A": dict.fromkeys(("Walker", "Hopper", "CartPole"), returns), "B": {"Hopper": returns}}
    )
    with pytest.raises(SystemExit, match=complaint):
        command_line("plot-from-file", "-i", str(tmp_path / "results.pkl"), *options)


def test_reference_scores_cover_all_names_of_the_mujoco_tasks() -> None:
    assert {score.env_id for score in REFERENCE_SCORES} == {f"{name}-v5" for name in MUJOCO}
    assert all(REFERENCES[name] is REFERENCES[f"{name}-v5"] for name in MUJOCO)
    # The zoo's own short names, and one of its own scores
    assert REFERENCES["Half"].env_id == "HalfCheetah-v5" and REFERENCES["Walker"].env_id == "Walker2d-v5"
    assert REFERENCES["BipedalWalker"].max == 300


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


def test_statistics_of_the_best_agent_outlive_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = AGDExperimentManager(argparse.Namespace(), "ppo", "Hopper-v5", str(tmp_path), eval_freq=32, n_timesteps=64)
    model, _ = manager.setup_experiment()
    (evaluation,) = manager.callbacks
    evaluation.init_callback(model)
    evaluation.callback_on_new_best.on_step()
    file = tmp_path / "ppo" / "Hopper-v5_1" / "Hopper-v5" / "vecnormalize.pkl"
    saved = file.read_bytes()
    assert len(saved) > 1000

    def crash(self: VecNormalize) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(VecNormalize, "__getstate__", crash)
    for save in (evaluation.callback_on_new_best.on_step, lambda: manager.save_trained_model(model)):
        with pytest.raises(OSError, match="no space left"):
            save()
        assert file.read_bytes() == saved


def test_a_warning_of_mujoco_is_shown_once_unless_nobody_can_act_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("Nan in QACC", "compiler attribute 'settotalmass' is deprecated and will be removed", "Nan in QACC"):
        print_mujoco_warning(message)
    assert capsys.readouterr().err == "MuJoCo: Nan in QACC\n"


def test_an_agent_goes_to_the_hub_and_comes_back(
    tmp_path: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"

    class FolderInPlaceOfTheHub:
        def create_repo(self, repo_id: str, **kwargs: Any) -> str:
            return repo_id

        def upload_folder(self, repo_id: str, folder_path: Path, **kwargs: Any) -> None:
            shutil.copytree(folder_path, hub / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi", FolderInPlaceOfTheHub)
    monkeypatch.setattr("huggingface_sb3.load_from_hub", lambda repo_id, file: str(hub / repo_id / file))
    monkeypatch.chdir(tmp_path)
    agent = ["--algo", "agdppo", "--env", "Hopper-v5"]
    command_line("train", *agent, "-n", "32", "--eval-freq", "-1", "--device", "cpu", "-params", "n_steps:32")
    command_line("push-to-hub", *agent, "-f", "logs", "-orga", "me", "-n", "2000", "--", "--seed", "1")
    card = (hub / "me" / "agdppo-Hopper-v5" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])["model-index"][0]
    assert metadata["name"] == "AGDPPO"
    assert metadata["results"][0]["dataset"]["name"] == "Hopper-v5"
    assert float(metadata["results"][0]["metrics"][0]["value"].split()[0]) > 0
    assert "sb3-agd load-from-hub --algo agdppo --env Hopper-v5 -orga me -name agdppo-Hopper-v5" in card
    command_line("load-from-hub", *agent, "-f", "loaded", "-orga", "me")
    command_line("enjoy", *agent, "-f", "loaded", "--no-render", "-n", "100")
    out = capsys.readouterr().out
    assert "loaded/agdppo/Hopper-v5_1" in out and "Loading running average" in out

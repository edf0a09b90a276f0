"""RL-Zoo's commands, run as a user runs them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
import yaml
from optuna.trial import TrialState
from processes import PATIENCE, SETTINGS, wait_for
from rl_zoo3.utils import create_test_env, get_saved_hyperparams
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_agd import AGDPPO
from sb3_agd.diagnostics.command import training_environment

ENV = "Hopper-v5"
# No episode is longer
EPISODE = "1000"
TINY = (
    "n_steps:32 batch_size:32 n_epochs:1 synthetic_ratio:1 horizon:2 n_denoising_steps:1 world_model_warmup:0 "
    "world_model_gradient_steps:2 world_model_batch_size:16 world_model_kwargs:dict(network_kwargs=dict(width=16,depth=1))"
).split()
TRAIN = ["train", "--algo", "agdppo", "--env", ENV, "--device", "cpu", "--verbose", "0"]
OPTIMIZE = [*TRAIN, "-n", "64", "-optimize", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]


def start(folder: Path, arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Start a command in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "sb3_agd", *arguments],
        cwd=folder,
        env={**os.environ, **SETTINGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a command that must succeed, and return what it wrote to stdout."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def run(folder: Path, *arguments: str) -> str:
    """Run a command that must succeed, and return what it wrote to stdout."""
    return finish(start(folder, arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the logs of two equal short training runs that used most options."""
    folder = tmp_path_factory.mktemp("trained")
    for _ in range(2):
        out = run(
            folder,
            *(*TRAIN, "-n", "256", "--seed", "1", "-f", "logs", "-tb", "tensorboard", "--progress"),
            *("--eval-freq", "128", "--eval-episodes", "2", "--save-freq", "128", "--save-replay-buffer", "-params", *TINY),
        )
        assert "hyperparams/agdppo.yml" in out
        assert "256/256" in out
    return folder


def load(run_folder: Path, name: str = ENV) -> AGDPPO:
    """Load an agent from the folder of a run."""
    # There is a folder of the same name
    return AGDPPO.load(run_folder / f"{name}.zip", device="cpu")


def test_training_leaves_the_agent_its_checkpoints_evaluations_transitions_and_statistics(trained: Path) -> None:
    folder = trained / "logs" / "agdppo" / f"{ENV}_1"
    assert load(folder).num_timesteps == 256
    assert load(folder, "rl_model_128_steps").num_timesteps == 128
    assert (folder / "best_model.zip").is_file()
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [128, 256]
    model = load(folder)
    model.load_replay_buffer(folder / "replay_buffer.pkl")
    assert len(model.replay_buffer) == 256
    assert yaml.unsafe_load((folder / ENV / "config.yml").read_text())["normalize"] is True
    assert (folder / ENV / "vecnormalize.pkl").is_file()
    events = EventAccumulator(str(trained / "tensorboard" / ENV / "AGDPPO_1")).Reload()
    assert {"agd/world_model_loss", "eval/mean_reward", "rollout/ep_rew_mean"} <= set(events.Tags()["scalars"])


def test_the_same_seed_trains_the_same_agent(trained: Path) -> None:
    first, second = (load(trained / "logs" / "agdppo" / f"{ENV}_{number}").policy.state_dict() for number in (1, 2))
    assert all(th.equal(value, second[name]) for name, value in first.items())


def test_enjoy_plays_the_last_and_the_best_agent(trained: Path) -> None:
    for choice, file in ([], ENV), (["--load-best"], "best_model"):
        out = run(trained, "enjoy", "--algo", "agdppo", "--env", ENV, "-f", "logs", "--no-render", "-n", EPISODE, *choice)
        assert f"{file}.zip" in out
        assert "Loading running average" in out
        assert "Mean reward" in out


def test_a_killed_run_is_resumed_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    command = [*TRAIN, "-n", "2048", "--seed", "1", "--eval-freq", "-1", "--save-freq", "512", "--save-replay-buffer"]
    command += ["-params", *TINY, "-f"]
    folders = [tmp_path / name / "agdppo" / f"{ENV}_1" for name in ("whole", "killed", "resumed")]
    run(tmp_path, *command, "whole")
    process = start(tmp_path, [*command, "killed"])
    checkpoint = folders[1] / "rl_model_512_steps.zip"
    assert wait_for(checkpoint.is_file)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folders[1] / f"{ENV}.zip").exists()
    out = run(tmp_path, *command, "resumed", "-i", str(checkpoint))
    assert "Resuming the run at 512 of 2048 steps" in out
    whole, resumed = load(folders[0]), load(folders[2])
    assert whole.num_timesteps == resumed.num_timesteps == 2048
    for name in ("policy", "world_model"):
        for first, second in zip(*(getattr(model, name).state_dict().values() for model in (whole, resumed)), strict=True):
            assert th.equal(first, second)


def test_sigterm_ends_training_with_saving_the_agent(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        [
            *(*TRAIN, "-n", "100000", "--eval-freq", "-1", "--save-freq", "64", "-f", "logs", "--vec-env", "subproc"),
            *("-params", *TINY, "n_envs:2"),
        ],
    )
    folder = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    assert wait_for(lambda: list(folder.glob("rl_model_*_steps.zip")))
    process.terminate()
    finish(process)
    assert load(folder).num_timesteps < 100_000


def test_training_goes_on_from_a_saved_agent_with_its_transitions_and_statistics(trained: Path, tmp_path: Path) -> None:
    before = trained / "logs" / "agdppo" / f"{ENV}_1"
    out = run(
        tmp_path,
        *(*TRAIN, "-n", "64", "-i", str(before / f"{ENV}.zip"), "--eval-freq", "-1", "--save-replay-buffer"),
        *("-params", *TINY, "guidance_scale:0.7"),
    )
    assert "Loading replay buffer" in out
    assert "Loading saved VecNormalize stats" in out
    after = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    model = load(after)
    assert model.guidance_scale == 0.7
    assert model.world_model.n_updates > load(before).world_model.n_updates
    model.load_replay_buffer(after / "replay_buffer.pkl")
    assert len(model.replay_buffer) == 256 + 64
    counts = [
        VecNormalize.load(str(folder / ENV / "vecnormalize.pkl"), AGDPPO("MlpPolicy", ENV).get_env()).obs_rms.count
        for folder in (before, after)
    ]
    assert counts[1] > counts[0]


def test_recorded_video_shows_something(trained: Path) -> None:
    probe = f"import gymnasium; env = gymnasium.make('{ENV}', render_mode='rgb_array'); env.reset(); env.render()"
    drawing = subprocess.run([sys.executable, "-c", probe], env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    if drawing.returncode != 0:
        pytest.skip(f"MuJoCo cannot render here: {drawing.stderr.splitlines()[-1]}")
    run(trained, "record-video", "--algo", "agdppo", "--env", ENV, "-f", "logs", "-n", "10", "-o", "videos")
    (video,) = (trained / "videos").glob("*.mp4")
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip:
        frames = np.stack(list(clip.iter_frames()))
    assert len(frames) >= 10
    assert frames.mean() > 20
    assert frames.std() > 20
    assert (frames[0] != frames[-1]).any()


def test_workers_tune_together_and_their_trials_can_be_trained(tmp_path: Path) -> None:
    study_arguments = ["--storage", "sqlite:///study.db", "--study-name", "study"]
    # Seeds of short trials: what the sampler sets cannot be made small here
    workers = [
        start(tmp_path, [*OPTIMIZE, "--n-trials", "1", "--seed", seed, "-f", f"worker_{seed}", *study_arguments])
        for seed in ("7", "55")
    ]
    for worker in workers:
        finish(worker)
    trials = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2

    for trial in trials:
        folder = f"trial_{trial.number}"
        run(
            tmp_path,
            *(*TRAIN, "-n", "32", "-f", folder, "--eval-freq", "-1", "--trial-id", str(trial.number), *study_arguments),
        )
        model = load(tmp_path / folder / "agdppo" / f"{ENV}_1")
        assert model.n_steps == 2 ** trial.params["n_steps_pow"]
        assert model.gamma == 1 - trial.params["one_minus_gamma"]
        for name in ("guidance", "guidance_scale", "horizon", "synthetic_ratio", "world_model_learning_rate"):
            assert getattr(model, name) == trial.params[name]


def test_an_error_in_this_package_ends_tuning_but_a_diverged_policy_is_pruned(tmp_path: Path) -> None:
    tune = [*OPTIMIZE, "-n", "512", "--n-trials", "1", "--seed", "7", "--storage", "study.log"]
    wrong_shape = "termination_fn:lambda *transitions:__import__('numpy').zeros(3)"
    workers = [
        start(tmp_path, [*tune, "--study-name", name, "-f", name, "-params", "world_model_warmup:0", fault])
        for name, fault in (("broken", wrong_shape), ("diverged", "vf_coef:float('nan')"))
    ]
    (_, error), (out, _) = (worker.communicate(timeout=PATIENCE) for worker in workers)
    assert workers[0].returncode != 0
    assert "Trial 0 failed in sb3_agd: `termination_fn` must return" in error
    assert "Number of finished trials:  1" in out
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    states = {name: optuna.load_study(study_name=name, storage=storage).trials[0].state for name in ("broken", "diverged")}
    assert states == {"broken": TrialState.FAIL, "diverged": TrialState.PRUNED}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--algo", "agdpo"], "invalid choice: 'agdpo'"),
        (["--algo", "agdppo", "--env", "Hoper-v5"], "Hoper-v5 not found in gym registry, you maybe meant Hopper-v5?"),
        (["--algo", "agdppo", "-params", "horizn:3"], "unexpected keyword argument 'horizn'"),
    ],
)
def test_a_wrong_name_is_answered_without_traceback(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    process = start(tmp_path, ["train", *arguments])
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert complaint in error.splitlines()[-1]
    assert "Traceback" not in error


def test_other_algorithms_train_with_the_shipped_settings_too(tmp_path: Path) -> None:
    out = run(tmp_path, "train", "--algo", "ppo", "--env", ENV, "-n", "32", "--eval-freq", "-1", "-params", "n_steps:32")
    assert "hyperparams/ppo.yml" in out
    assert "Normalization activated" in out


def test_evaluations_and_training_can_be_plotted(trained: Path) -> None:
    out = run(trained, "all-plots", "-a", "agdppo", "-e", ENV, "-f", "logs", "-o", "results", "--no-display")
    assert "AGDPPO" in out
    assert ENV in out
    run(trained, "plot-from-file", "-i", "results", "--boxplot", "-o", "figure.png", "--format", "png")
    assert (trained / "figure.png").stat().st_size > 1000
    run(trained, "plot-train", "-a", "agdppo", "-e", ENV, "-f", "logs", "-w", "2")


def test_benchmark_evaluates_all_agents_of_a_folder(trained: Path) -> None:
    out = run(trained, "benchmark", "--log-dir", "logs", "--benchmark-dir", "results", "-n", EPISODE, "--", "--seed", "3")
    assert f"agdppo on {ENV}: " in out
    lines = (trained / "results" / "benchmark.md").read_text().splitlines()
    columns, row = (dict(enumerate(cell.strip() for cell in line.strip("|").split("|"))) for line in (lines[0], lines[2]))
    table = {columns[number]: row[number] for number in columns}
    assert (table["algo"], table["env"], table["training steps"]) == ("agdppo", ENV, "256")
    # As `enjoy` shows it
    out = run(trained, "enjoy", "--algo", "agdppo", "--env", ENV, "-f", "logs", "--no-render", "-n", EPISODE, "--seed", "3")
    (mean,) = (line.split()[2] for line in out.splitlines() if line.startswith("Mean reward"))
    assert float(table["mean return"]) == pytest.approx(float(mean), abs=0.01)
    assert f"{table['episodes']} Episodes" in out


def test_warnings_that_a_user_cannot_act_on_are_not_shown(tmp_path: Path) -> None:
    env_id = "HalfCheetah-v5"
    make = f"import gymnasium; gymnasium.make({env_id!r})"
    alone = subprocess.run([sys.executable, "-c", make], cwd=tmp_path, capture_output=True, text=True)
    if "settotalmass" not in alone.stderr:
        pytest.skip("This version of MuJoCo has no such warning")
    process = start(tmp_path, ["train", "--algo", "ppo", "--env", env_id, "-n", "32", "-params", "n_steps:32"])
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert "settotalmass" not in error


def run_without(package: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as if a package were not installed."""
    code = f"import sys; sys.modules[{package!r}] = None; from sb3_agd.zoo.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("command", ["imagine", "plot-from-file"])
def test_help_needs_no_extra(command: str, tmp_path: Path) -> None:
    done = run_without("matplotlib", tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: sb3-agd {command}")


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("matplotlib", ["imagine", "--env", ENV, "--model", "model.zip"]),
        ("seaborn", ["all-plots", "-a", "ppo", "-e", ENV, "-f", "logs"]),
        ("tensorboard", ["train", "--algo", "agdppo", "--env", ENV, "--eval-freq", "-1", "-tb", "tensorboard"]),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(package: str, arguments: list[str], tmp_path: Path) -> None:
    done = run_without(package, tmp_path, *arguments)
    assert done.returncode == 1
    expected = f'sb3-agd {arguments[0]}: error: {package} is not installed: pip install "sb3_agd[zoo]"'
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr


def test_imagine_plays_agents_with_stacked_frames_as_enjoy_does(tmp_path: Path) -> None:
    run(tmp_path, *TRAIN, "-n", "128", "-f", "logs", "--eval-freq", "-1", "-params", *TINY, "frame_stack:3")
    folder = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    agent = folder / f"{ENV}.zip"
    arguments, wrapper = training_environment(agent, ENV)
    assert wrapper is not None
    env = wrapper(gym.make(ENV, **arguments))
    settings, statistics = get_saved_hyperparams(str(folder / ENV))
    played = create_test_env(ENV, stats_path=statistics, should_render=False, hyperparams=settings)
    assert env.observation_space == played.observation_space
    normalization = VecNormalize.load(str(folder / ENV / "vecnormalize.pkl"), played.venv)
    for seed in (0, 1):
        played.seed(seed)
        observation, _ = env.reset(seed=seed)
        assert np.array_equal(observation, played.reset()[0])
        for action in np.zeros((5, *env.action_space.shape)):
            observation, reward, *_ = env.step(action)
            expected, rewards, *_ = played.step(action[None])
            assert np.array_equal(observation, expected[0])
            # `enjoy` shows the environment's own rewards, which the agent never saw
            assert reward == pytest.approx(normalization.normalize_reward(rewards)[0])
    # Without its ending, as SB3 takes it as well
    out = run(tmp_path, "imagine", "--env", ENV, "--model", str(agent.with_suffix("")), "--n-starts", "2")
    assert "monte carlo" in out
    assert not (tmp_path / "imagined" / "video.mp4").exists()


def test_paper_settings_are_found_by_name_and_environments_may_run_in_processes(tmp_path: Path) -> None:
    small = [setting for setting in TINY if not setting.startswith(("horizon", "n_denoising_steps"))]
    run(
        tmp_path,
        *(*TRAIN, "-n", "64", "--eval-freq", "-1", "-conf", "agdppo_paper.yml", "--vec-env", "subproc"),
        *("-params", *small, "n_denoising_steps:2", "n_envs:2"),
    )
    model = load(tmp_path / "logs" / "agdppo" / f"{ENV}_1")
    assert (model.sampler, model.guidance, model.guidance_scale, model.horizon) == ("ddpm", "eag", 4, 10)
    assert model.n_envs == 2

"""RL-Zoo's training command: killed, terminated and resumed runs, tuning, other algorithms and settings."""

import signal
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import optuna
import pytest
import torch as th
from optuna.trial import TrialState
from processes import finish, run_here, start, wait_for
from rl_zoo3.utils import create_test_env, get_saved_hyperparams
from short_trainings import ENV, TINY, TRAIN, load
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import ExponentialAdvantageGuide
from sb3_agd.checkpoint.env_snapshot import Snapshot, env_layers
from sb3_agd.replication import PolicyScoreActions
from sb3_agd.zoo.imagine import training_environment

OPTIMIZE = [*TRAIN, "-n", "64", "-optimize", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]


def test_a_killed_run_is_resumed_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    command = [*TRAIN, "-n", "1024", "--seed", "1", "--eval-freq", "-1", "--save-freq", "256", "--save-replay-buffer"]
    command += ["-params", *TINY, "-f"]
    folders = [tmp_path / name / "agdppo" / f"{ENV}_1" for name in ("whole", "killed", "resumed")]
    run_here(tmp_path, *command, "whole")
    process = start(tmp_path, *command, "killed")
    checkpoint = folders[1] / "rl_model_256_steps.zip"
    assert wait_for(checkpoint.is_file)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folders[1] / f"{ENV}.zip").exists()
    out = run_here(tmp_path, *command, "resumed", "-i", str(checkpoint))
    assert "Resuming the run at 256 of 1024 steps" in out
    whole, resumed = load(folders[0]), load(folders[2])
    assert whole.num_timesteps == resumed.num_timesteps == 1024
    for name in ("policy", "world_model"):
        for first, second in zip(*(getattr(model, name).state_dict().values() for model in (whole, resumed)), strict=True):
            assert th.equal(first, second)


def test_sigterm_ends_training_in_processes_with_saving_the_agent(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        *(*TRAIN, "-n", "100000", "--eval-freq", "-1", "--save-freq", "64", "-f", "logs", "--vec-env", "subproc"),
        *("-params", *TINY, "n_envs:2"),
    )
    folder = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    assert wait_for(lambda: list(folder.glob("rl_model_*_steps.zip")))
    process.terminate()
    finish(process)
    model = load(folder)
    assert model.n_envs == 2
    assert model.num_timesteps < 100_000


def test_workers_tune_together_and_their_trials_can_be_trained(tmp_path: Path) -> None:
    study_arguments = ["--storage", "sqlite:///study.db", "--study-name", "study"]
    # Seeds of short trials: what the sampler sets cannot be made small here
    command = [*OPTIMIZE, "--n-trials", "1", *study_arguments, "-f"]
    other = start(tmp_path, *command, "worker_1", "--seed", "7")
    run_here(tmp_path, *command, "worker_2", "--seed", "55")
    finish(other)
    trials = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2

    for trial in trials:
        folder = f"trial_{trial.number}"
        run_here(
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
    command = [*tune, "--study-name", "broken", "-f", "broken", "-params", "world_model_warmup:0", wrong_shape]
    with pytest.raises(RuntimeError, match="Trial 0 failed in sb3_agd: `termination_fn` must return"):
        run_here(tmp_path, *command)
    command = [*tune, "--study-name", "diverged", "-f", "diverged", "-params", "world_model_warmup:0", "vf_coef:float('nan')"]
    with pytest.raises(SystemExit, match="No trials are completed yet"):
        run_here(tmp_path, *command)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    states = {name: optuna.load_study(study_name=name, storage=storage).trials[0].state for name in ("broken", "diverged")}
    assert states == {"broken": TrialState.FAIL, "diverged": TrialState.PRUNED}


def test_other_algorithms_train_with_the_shipped_settings_too(tmp_path: Path) -> None:
    out = run_here(tmp_path, "train", "--algo", "ppo", "--env", ENV, "-n", "32", "--eval-freq", "-1", "-params", "n_steps:32")
    assert "hyperparams/ppo.yml" in out
    assert "Normalization activated" in out


def test_warnings_that_a_user_cannot_act_on_are_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    env_id = "HalfCheetah-v5"
    messages: list[str] = []
    mujoco.set_mju_user_warning(messages.append)
    gym.make(env_id)
    if not any("settotalmass" in message for message in messages):
        pytest.skip("This version of MuJoCo has no such warning")
    run_here(tmp_path, "train", "--algo", "ppo", "--env", env_id, "-n", "32", "--eval-freq", "-1", "-params", "n_steps:32")
    assert "settotalmass" not in capfd.readouterr().err
    assert len(messages) == 1


def test_imagine_plays_agents_with_stacked_frames_as_enjoy_does(tmp_path: Path) -> None:
    run_here(tmp_path, *TRAIN, "-n", "128", "-f", "logs", "--eval-freq", "-1", "-params", *TINY, "frame_stack:3")
    folder = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    agent = folder / f"{ENV}.zip"
    arguments, wrapper = training_environment(agent, ENV)
    assert wrapper is not None
    env = wrapper(gym.make(ENV, **arguments))
    settings, statistics = get_saved_hyperparams(str(folder / ENV))
    played = create_test_env(ENV, stats_path=statistics, should_render=False, hyperparams=settings)
    assert env.observation_space == played.observation_space
    normalization = VecNormalize.load(str(folder / ENV / "vecnormalize.pkl"), played.venv)
    assert Snapshot.of(env_layers(env)).left_out == []
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
    out = run_here(tmp_path, "imagine", "--env", ENV, "--model", str(agent.with_suffix("")), "--n-starts", "2")
    assert "monte carlo" in out
    assert not (tmp_path / "imagined" / "video.mp4").exists()


def test_paper_settings_are_found_by_name(tmp_path: Path) -> None:
    own = ("horizon", "n_denoising_steps", "world_model_kwargs")
    small = [setting for setting in TINY if not setting.startswith(own)]
    small += ["n_denoising_steps:2", "world_model_kwargs:dict(network='mlp',network_kwargs=dict(width=16,depth=1))"]
    run_here(
        tmp_path,
        *(*TRAIN, "-n", "64", "--eval-freq", "-1", "-conf", "paper.yml:agd_eag", "-params", *small),
    )
    model = load(tmp_path / "logs" / "agdppo" / f"{ENV}_1")
    assert (model.sampler, model.guidance_scale, model.horizon) == ("ddpm", 4, 10)
    # Saved with the model
    assert isinstance(model.guidance, ExponentialAdvantageGuide) and model.guidance.weight == "sigma4"
    assert isinstance(model.action_sampler, PolicyScoreActions) and model.policy_data == "imagined"

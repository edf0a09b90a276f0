"""The report on what a model imagines."""

import json
import math
import os
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from environments import SMALL, ToyEnv
from gymnasium import spaces
from PIL import Image
from processes import SETTINGS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import evaluator as evaluator_module
from sb3_agd.diagnostics import imagination_report
from sb3_agd.diagnostics.command import training_environment
from sb3_agd.diagnostics.evaluator import SAMPLES, Evaluator
from sb3_agd.diagnostics.report import termination_rates, without_nan
from sb3_agd.diagnostics.video import find_pose
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.imagination.segment_errors import segment_errors
from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination

N_STARTS = 4


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an agent that was trained with normalisation."""
    file = tmp_path_factory.mktemp("trained") / "hopper.zip"
    AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Hopper-v5", seed=0)), **SMALL).learn(128).save(file)
    return file


@pytest.fixture(autouse=True)
def short_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "MAX_TAIL", 20)


def test_writes_figures_that_add_up(hopper: Path, tmp_path: Path) -> None:
    model = AGDPPO.load(hopper, device="cpu")
    folder = tmp_path / "new" / "folder"
    report = imagination_report(
        model, partial(gym.make, "Hopper-v5"), folder, N_STARTS, guidance="eag", guidance_scale=5.0, n_filmed=0
    )
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["env"] == "Hopper-v5"
    assert report["replayed_in_the_real_environment"]
    horizon = model.horizon
    for what in ("states", "rewards", "terminations"):
        for values in report["errors"][what].values():
            assert len(values) == horizon
            assert np.isfinite(values).all()
    assert set(report["advantages"]) == {"claimed", "replayed", "monte_carlo"}
    for figures in report["advantages"].values():
        assert figures["gain"] == pytest.approx(figures["mean_guided"] - figures["mean_unguided"], abs=1e-6)
        assert figures["standard_error"] > 0
    assert report["advantages"]["monte_carlo"]["mean_unguided"] == pytest.approx(0, abs=1e-6)
    # Guidance draws what the critic likes best
    assert report["advantages"]["claimed"]["gain"] > 0
    for name in ("errors", "dimensions", "advantages"):
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert pixels.shape[1] > 500
        assert (pixels < 128).mean() > 0.005


def test_the_same_seed_writes_the_same_report(hopper: Path, tmp_path: Path) -> None:
    reports = [
        imagination_report(
            AGDPPO.load(hopper, device="cpu"), partial(gym.make, "Hopper-v5"), tmp_path, N_STARTS, seed=seed, n_filmed=0
        )
        for seed in (1, 1, 2)
    ]
    assert reports[0] == reports[1]
    assert reports[0]["errors"] != reports[2]["errors"]


def test_errors_vanish_if_the_world_model_is_the_environment(hopper: Path) -> None:
    evaluator = Evaluator(AGDPPO.load(hopper, device="cpu"), partial(gym.make, "Hopper-v5"), seed=0)
    start_states = evaluator.collect_start_states(N_STARTS)
    assert start_states.snapshots is not None
    honest = evaluator.imagination.imagine

    def imagine(*arguments: Any) -> tuple[Segments[th.Tensor], th.Tensor]:
        segments, actions = honest(*arguments)
        snapshots = [snapshot for snapshot in start_states.snapshots for _ in range(SAMPLES)]
        return evaluator.simulator.replay(snapshots, segments), actions

    evaluator.imagination.imagine = imagine
    outcome = evaluator.evaluate(start_states, NO_GUIDANCE)
    assert th.equal(outcome.imagined.observations, outcome.real.observations)
    assert np.array_equal(outcome.claimed, outcome.replayed)
    errors = segment_errors(evaluator.imagination.world_model, outcome.imagined, outcome.real)
    assert errors["states"].max() == 0 < errors["persistence"].min()


def test_monte_carlo_returns_are_those_of_the_environment() -> None:
    # Rewards are 1, and an episode is over after 20 steps
    model = AGDPPO("MlpPolicy", ToyEnv(terminates=True), **{**SMALL, "gamma": 0.5}).learn(64)
    evaluator = Evaluator(model, partial(ToyEnv, terminates=True), seed=0)
    start_states = evaluator.collect_start_states(1)
    assert start_states.snapshots is not None
    ahead = evaluator._monte_carlo(start_states.snapshots[0], start_states.recorded.actions[0].numpy())
    # A tail of 5 steps: 0.5 ** 5 < 0.05, and the critic's value at its end
    n_steps = model.horizon + 5
    value = evaluator.imagination.critic.values(th.as_tensor(evaluator.simulator.env.unwrapped._observation())[None].float())
    assert value.abs().item() < 10
    assert ahead == pytest.approx(2 * (1 - 0.5**n_steps), abs=10 * 0.5**n_steps)


class Seldom(BaseFeaturesExtractor):
    """Says when it is used as in training."""

    def __init__(self, observation_space: gym.Space):
        super().__init__(observation_space, 3)
        self.watched = False

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert not (self.watched and self.training)
        return observations


def test_reports_use_the_policy_as_in_evaluation(tmp_path: Path) -> None:
    policy_kwargs = {"net_arch": [16], "features_extractor_class": Seldom}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"policy_kwargs": policy_kwargs}).learn(64)
    model.policy.set_training_mode(True)
    model.policy.features_extractor.watched = True
    imagination_report(model, partial(gym.make, "Pendulum-v1"), tmp_path, N_STARTS, n_filmed=0)


class Forgetful(ToyEnv):
    """What cannot be put back: its state is out of its own reach."""

    count = 0

    def _observation(self) -> np.ndarray:
        Forgetful.count += 1
        return np.array([np.sin(Forgetful.count), np.cos(Forgetful.count), 0], dtype=np.float32)


def test_recorded_segments_take_the_place_of_replayed_ones(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", Forgetful(), **SMALL).learn(128)
    report = imagination_report(model, Forgetful, tmp_path, N_STARTS, n_filmed=0)
    assert not report["replayed_in_the_real_environment"]
    assert set(report["advantages"]) == {"claimed"}
    assert set(report["errors"]["states"]) == {"unguided", "persistence"}
    assert (tmp_path / "advantages.png").is_file()


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    with pytest.raises(ValueError, match="The world model was not trained yet"):
        imagination_report(model, ToyEnv, tmp_path)
    model.learn(64)
    with pytest.raises(ValueError, match="`n_starts` must be at least 2, not 1"):
        imagination_report(model, ToyEnv, tmp_path, n_starts=1)
    other = partial(ToyEnv, observation_space=spaces.Box(-1, 1, (5,)))
    with pytest.raises(ValueError, match=r"environment's observation space .*5.* is not the model's"):
        imagination_report(model, other, tmp_path)


def test_the_command_makes_the_environment_that_the_agent_was_trained_in(tmp_path: Path) -> None:
    model = tmp_path / "Hopper-v5_1" / "best_model.zip"
    assert training_environment(model, "Hopper-v5") == ({}, None)
    # As RL-Zoo writes them
    folder = model.parent / "Hopper-v5"
    folder.mkdir(parents=True)
    wrappers = [{"gymnasium.wrappers.TimeAwareObservation": {"flatten": True}}]
    settings = OrderedDict(env_wrapper=wrappers, env_kwargs={"ctrl_cost_weight": 1.0})
    (folder / "config.yml").write_text(yaml.dump(settings))
    assert training_environment(model, "Hopper-v5")[0] == {"ctrl_cost_weight": 1.0}
    (folder / "args.yml").write_text(yaml.dump(OrderedDict(env_kwargs={"forward_reward_weight": 2.0})))
    arguments, wrapper = training_environment(model, "Hopper-v5")
    assert arguments == {"forward_reward_weight": 2.0}
    assert wrapper(gym.make("Hopper-v5")).observation_space.shape == (12,)


def test_a_report_without_measurement_is_valid_json() -> None:
    assert without_nan({"rates": [0.5, math.nan], "env": "Hopper-v5"}) == {"rates": [0.5, None], "env": "Hopper-v5"}


def test_terminations_behind_a_termination_do_not_count() -> None:
    terminations = th.tensor([[False, True, True], [False, False, True], [False, False, False]])
    nothing = th.zeros(3, 3)
    segments = Segments(th.zeros(3, 4, 1), nothing[..., None], nothing, terminations, mask_after_termination(terminations))
    assert termination_rates(segments) == pytest.approx([0, 1 / 3, 1 / 2])


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Reacher-v5", "Ant-v5"])
def test_the_pose_of_a_task_follows_from_its_observation(env_id: str) -> None:
    env: Any = gym.make(env_id).unwrapped
    state, _ = env.reset(seed=0)
    for _ in range(5):
        state, *_ = env.step(np.full(env.action_space.shape, 0.1))
    n_skipped = getattr(env, "observation_structure", {}).get("skipped_qpos", 0)
    positions, velocities = find_pose(env)(env, state, env.data.qpos[:n_skipped])
    np.testing.assert_allclose(positions, env.data.qpos, atol=1e-12)
    # Reacher does not observe the velocity of its target, which stands still
    np.testing.assert_allclose(velocities, env.data.qvel, atol=1e-12)


def test_the_command_writes_a_report_with_a_video(hopper: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sb3_agd",
        "imagine",
        "--env",
        "Hopper-v5",
        "--model",
        str(hopper),
        "--n-starts",
        "2",
        "--n-filmed",
        "3",
    ]

    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Gain of guidance" in done.stdout
    folder = tmp_path / "imagined"
    assert {"errors.png", "dimensions.png", "advantages.png", "report.json"} <= {file.name for file in folder.iterdir()}
    if "MuJoCo cannot render here" in done.stderr:
        pytest.skip("MuJoCo cannot render here")
    from moviepy import VideoFileClip

    with VideoFileClip(str(folder / "video.mp4")) as clip:
        frames = np.stack(list(clip.iter_frames())).astype(int)
    height, width = frames.shape[1:3]
    assert width == 2 * height
    real, imagined = frames[:, 60:, :height], frames[:, 60:, height:]
    assert real.std() > 20 and imagined.std() > 20
    # Both move, and the model of an agent that has hardly learned is not perfect
    assert np.abs(np.diff(real, axis=0)).max() > 50 and np.abs(np.diff(imagined, axis=0)).max() > 50
    assert np.abs(real - imagined).max() > 50


def test_the_command_refuses_a_wrong_model_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"nothing")

    command = [sys.executable, "-m", "sb3_agd", "imagine", "--env", "Hopper-v5", "--model", "model.zip"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "model.zip cannot be loaded as AGDPPO: it is damaged" in done.stderr.splitlines()[-1]

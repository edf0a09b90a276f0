"""Figures of imagined and real trajectories during training, in the files of TensorBoard."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure, KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_agd import AGDPPO, ImaginationCallback
from sb3_agd.diagnostics import video

FIGURES = ["agd/dimensions", "agd/errors"]


def images(folder: Path) -> dict[str, dict[int, bytes]]:
    """For each tag, the image files at each step."""
    (file,) = folder.rglob("events.*")
    events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
    tags = sorted(events.Tags()["images"])
    return {tag: {image.step: image.encoded_image_string for image in events.Images(tag)} for tag in tags}


def train(env: Any, callback: BaseCallback | None, folder: Path, total_timesteps: int = 192, **kwargs: Any) -> AGDPPO:
    """Model after a training with a log in a folder."""
    model = AGDPPO("MlpPolicy", env, tensorboard_log=str(folder), **SMALL | kwargs)
    return model.learn(total_timesteps, callback)


@pytest.mark.parametrize(("log_freq", "steps"), [(1, [96, 128, 160, 192]), (64, [128, 192]), (70, [96, 160])])
def test_figures_are_written_after_the_rollouts_that_complete_the_interval(
    log_freq: int, steps: list[int], tmp_path: Path
) -> None:
    callback = ImaginationCallback(gym.make("InvertedPendulum-v5"), log_freq, n_starts=2)
    # The world model is trained from the third rollout on
    train("InvertedPendulum-v5", callback, tmp_path, world_model_warmup=65)
    written = images(tmp_path)
    assert [*written] == FIGURES
    for tag in FIGURES:
        assert [*written[tag]] == steps
        pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("L")) for file in written[tag].values()]
        assert all(shown.shape[1] > 400 and (shown < 128).mean() > 0.005 for shown in pixels)
        # Each of another policy and world model
        assert len({*written[tag].values()}) == len(steps)


class GlobalNoise(gym.Wrapper):
    """
    Draws from the global generators, as the policy does.

    :param env: The environment
    :param scale: Scale of the noise. With 0, observations do not depend on what is drawn
    """

    def __init__(self, env: gym.Env, scale: float):
        super().__init__(env)
        self.scale = scale

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return observation + self.scale * (np.random.normal() + th.rand(()).item()), *rest


def make_noisy(scale: float) -> gym.Env:
    """An environment with global noise."""
    return GlobalNoise(gym.make("Hopper-v5", render_mode="rgb_array"), scale)


def test_training_is_the_same_bit_for_bit_with_and_without_the_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymnasium.envs.mujoco.MujocoEnv.render", lambda self: np.full((48, 48, 3), 7, dtype=np.uint8))
    models = []
    for name in ("without", "figures", "video"):
        callback = None if name == "without" else ImaginationCallback(make_noisy(0.0), 1, n_starts=2, video=name == "video")
        env = VecNormalize(DummyVecEnv([partial(make_noisy, 0.01)] * 2))
        models.append(train(env, callback, tmp_path / name, 128, n_steps=16))
    for name in ("policy", "world_model"):
        for first, *others in zip(*(getattr(model, name).state_dict().values() for model in models), strict=True):
            assert all(th.equal(first, other) for other in others)
    assert images(tmp_path / "without") == {}
    assert [*images(tmp_path / "figures")] == FIGURES
    assert [*images(tmp_path / "video")] == [*FIGURES, "agd/video"]


def test_the_video_is_an_animation_at_the_same_steps_and_both_halves_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(env: Any) -> np.ndarray:
        """A square at the height of the joint that moves most."""
        frame = np.zeros((96, 96, 3), dtype=np.uint8)
        row = 48 + int(np.clip(env.data.qpos[-1] * 300, -20, 40))
        frame[row : row + 8, 60:90] = 255
        return frame

    monkeypatch.setattr("gymnasium.envs.mujoco.MujocoEnv.render", render)
    callback = ImaginationCallback(gym.make("Hopper-v5", render_mode="rgb_array"), 64, n_starts=2, video=True)
    train("Hopper-v5", callback, tmp_path)
    written = images(tmp_path)
    assert [*written["agd/video"]] == [*written["agd/errors"]] == [64, 128, 192]
    file = written["agd/video"][192]
    with Image.open(io.BytesIO(file)) as animation:
        assert animation.format == "GIF"
        assert animation.info["duration"] == 1000 / video.FRAMES_PER_SECOND
        frames = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("L"), dtype=int))
    shown = np.stack(frames)
    assert shown.shape[2] == 2 * shown.shape[1]
    # The right halves of both pictures, without the text
    real, imagined = (half[:, :, -40:] for half in np.split(shown, 2, axis=2))
    assert np.abs(np.diff(real, axis=0)).max() > 50 and np.abs(np.diff(imagined, axis=0)).max() > 50


def test_only_the_given_environment_is_stepped_and_it_stays_open(tmp_path: Path) -> None:
    class Counted(ToyEnv):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    training, given = Counted(), Counted()
    model = train(training, ImaginationCallback(given, 64, n_starts=2), tmp_path)
    assert training.total_steps == model.num_timesteps
    assert given.total_steps > 0 and not given.is_closed
    # An environment that cannot be filmed or restored has figures all the same
    assert [*images(tmp_path)] == FIGURES


class KeptFigures(KVWriter):
    """A user's own output."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.steps += [step for value in key_values.values() if isinstance(value, Figure)]

    def close(self) -> None:
        pass


def test_other_outputs_get_the_figures_too() -> None:
    model, output = AGDPPO("MlpPolicy", ToyEnv(), **SMALL), KeptFigures()
    model.set_logger(Logger(None, [output]))
    model.learn(64, ImaginationCallback(ToyEnv(), 64, n_starts=2))
    assert output.steps == [64, 64]


def test_text_outputs_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path))
    monkeypatch.setenv("SB3_LOG_FORMAT", "log,csv,json")
    train(ToyEnv(), ImaginationCallback(ToyEnv(), 32, n_starts=2), tmp_path, 64, verbose=1)
    assert [*images(tmp_path)] == FIGURES


@pytest.mark.parametrize(
    ("algorithm", "make_env", "settings", "message"),
    [
        (PPO, ToyEnv, {}, "ImaginationCallback needs AGDPPO, not PPO"),
        (
            AGDPPO,
            partial(ToyEnv, action_space=spaces.Discrete(2)),
            {},
            r"`eval_env` of ImaginationCallback: The environment's action space Discrete\(2\) is not",
        ),
        (AGDPPO, ToyEnv, {"video": True}, "`video` of ImaginationCallback: the pose of ToyEnv cannot be computed"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    algorithm: type[PPO], make_env: Callable[[], gym.Env], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    env = ToyEnv()
    model = algorithm("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", tensorboard_log=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        model.learn(32, ImaginationCallback(make_env(), **settings))
    assert env.total_steps == 0


def test_an_environment_that_is_not_rendered_is_not_filmed(tmp_path: Path) -> None:
    message = '`video` of ImaginationCallback: the environment was made without `render_mode="rgb_array"`'
    with pytest.raises(ValueError, match=message):
        train("Hopper-v5", ImaginationCallback(gym.make("Hopper-v5"), video=True), tmp_path)


def test_the_environment_of_the_training_is_refused(tmp_path: Path) -> None:
    env = ToyEnv()
    with pytest.raises(ValueError, match="`eval_env` of ImaginationCallback is the training environment: make another one"):
        train(env, ImaginationCallback(gym.wrappers.TimeLimit(env, 10)), tmp_path)


def test_a_training_that_logs_no_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="ImaginationCallback has nowhere to write to: give AGDPPO `tensorboard_log`"):
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32, ImaginationCallback(ToyEnv()))


def test_the_callback_is_refused_where_it_does_not_see_each_rollout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ImaginationCallback must be called at each step, but EveryNTimesteps"):
        train(ToyEnv(), EveryNTimesteps(32, ImaginationCallback(ToyEnv())), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_freq": 0}, "`log_freq` must be an integer of at least 1, not 0"),
        ({"n_starts": 1}, "`n_starts` must be an integer of at least 2, not 1"),
        ({"eval_env": make_vec_env("Pendulum-v1")}, "`eval_env` must be a gymnasium environment, not DummyVecEnv"),
        ({"eval_env": "Pendulum-v1"}, "`eval_env` must be a gymnasium environment, not str"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImaginationCallback(**{"eval_env": ToyEnv()} | arguments)

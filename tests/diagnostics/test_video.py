"""The video of real and imagined motion."""

from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_agd import AGDPPO
from sb3_agd.diagnostics import video
from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.poses import find_pose
from sb3_agd.diagnostics.video import film_segment, save_film
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination


def test_each_step_is_filmed_with_its_number_and_the_real_motion_is_not_disturbed(
    hopper: AGDPPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(hopper, partial(gym.make, "Hopper-v5"), seed=0)
    env: Any = evaluator.env.unwrapped
    poses: list[np.ndarray] = []
    texts: list[str] = []
    frames: list[np.ndarray] = []

    def render(_: Any) -> np.ndarray:
        poses.append(env.data.qpos.copy())
        return np.zeros((40, 40, 3), dtype=np.uint8)

    def labelled(frame: np.ndarray, text: str) -> np.ndarray:
        texts.append(text)
        return frame

    monkeypatch.setattr(type(env), "render", render)
    monkeypatch.setattr(video, "labelled", labelled)
    state = evaluator.simulator.reset(0)
    start = evaluator.simulator.snapshot()
    end = film_segment(evaluator, NO_GUIDANCE, find_pose(env), state, frames)
    assert texts == [f"{kind}, step {step} of 4" for step in (1, 2, 3, 4) for kind in ("real", "imagined")]
    assert [frame.shape for frame in frames] == [(40, 80, 3)] * 4
    # The same segment without a film
    evaluator.simulator.restore(start)
    evaluator.set_seed(0)
    starts = evaluator.imagination.start_states(state[None])
    imagined, _ = evaluator.imagination.imagine(starts, NO_GUIDANCE, evaluator.generator)
    for step, action in enumerate(imagined.actions[0].numpy()):
        state = evaluator.simulator.step(action)[0]
        real_pose, imagined_pose = poses[2 * step : 2 * step + 2]
        assert np.array_equal(real_pose, env.data.qpos)
        assert np.array_equal(imagined_pose[1:].astype(np.float32), imagined.observations[0, step + 1, :5].numpy())
    assert np.array_equal(end, state)


def test_the_last_imagined_frame_stays_after_an_imagined_termination(hopper: AGDPPO, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(hopper, partial(gym.make, "Hopper-v5"), seed=0)
    env: Any = evaluator.env.unwrapped
    imagine, renderings = evaluator.imagination.imagine, count(1)
    texts: list[str] = []
    frames: list[np.ndarray] = []

    def ended(*arguments: Any) -> tuple[Segments, th.Tensor]:
        segments, actions = imagine(*arguments)
        return replace(segments, mask=mask_after_termination(th.tensor([[False, True, False, False]]))), actions

    def labelled(frame: np.ndarray, text: str) -> np.ndarray:
        texts.append(text)
        return frame

    monkeypatch.setattr(type(env), "render", lambda _: np.full((4, 4, 3), next(renderings)))
    monkeypatch.setattr(evaluator.imagination, "imagine", ended)
    monkeypatch.setattr(video, "labelled", labelled)
    film_segment(evaluator, NO_GUIDANCE, find_pose(env), evaluator.simulator.reset(0), frames)
    assert texts[1::2] == [f"imagined, {when}" for when in ("step 1 of 4", "step 2 of 4", *["ended at step 2"] * 2)]
    # Real and imagined ones were drawn by turns
    assert [frame[0, ::4, 0].tolist() for frame in frames] == [[1, 2], [3, 4], [5, 4], [6, 4]]


def test_the_video_plays_slowly_and_both_halves_move(command_run: tuple[Path, str, str]) -> None:
    folder, _, err = command_run
    if "MuJoCo cannot render here" in err:
        pytest.skip("MuJoCo cannot render here")
    from moviepy import VideoFileClip

    with VideoFileClip(str(folder / "video.mp4")) as clip:
        assert clip.fps == 10
        frames = np.stack(list(clip.iter_frames())).astype(int)
    height, width = frames.shape[1:3]
    assert width == 2 * height
    assert 4 < len(frames) <= 3 * 4
    real, imagined = frames[:, 60:, :height], frames[:, 60:, height:]
    assert real.std() > 20 and imagined.std() > 20
    assert np.abs(np.diff(real, axis=0)).max() > 50 and np.abs(np.diff(imagined, axis=0)).max() > 50
    # The world model has hardly learned
    assert np.abs(real - imagined).max() > 50


def test_an_environment_without_render_mode_is_not_filmed(hopper: AGDPPO, tmp_path: Path) -> None:
    evaluator = Evaluator(hopper, partial(gym.make, "Hopper-v5"), seed=0)
    obstacle = save_film(evaluator, NO_GUIDANCE, 1, tmp_path / "video.mp4")
    assert obstacle == 'the environment was made without `render_mode="rgb_array"`'

"""Real and imagined motion side by side."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from PIL import Image, ImageDraw

from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.poses import Pose, advanced, find_pose, n_skipped, prepare_renderer
from sb3_agd.diagnostics.progress import track
from sb3_agd.imagination import Guidance

LABEL_POSITION = (12, 10)
LABEL_SIZE = 22
# Slow motion: in real time, a segment would last for a fraction of a second
FRAMES_PER_SECOND = 10


def labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """
    :param frame: Image, shape (height, width, 3)
    :param text: Text for its upper left corner
    :return: The image with the text
    """
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    draw.text(LABEL_POSITION, text, fill="white", stroke_fill="black", stroke_width=2, font_size=LABEL_SIZE)
    return np.asarray(image)


def film(evaluator: Evaluator, guidance: Guidance, n_segments: int, file: Path) -> str | None:
    """
    Film segment after segment. Each is imagined from the real state at the end of the one before.

    :param evaluator: Model and environment
    :param guidance: The guidance, its scale taken as it is
    :param n_segments: Number of segments
    :param file: Where to save the video
    :return: Why there is no video, ``None`` if there is one
    """
    if find_spec("moviepy") is None:
        return 'moviepy is not installed: pip install "sb3_agd[zoo]"'
    inner: Any = evaluator.env.unwrapped
    pose = find_pose(inner)
    if pose is None:
        return f"the pose of {type(inner).__name__} cannot be computed from its observations"
    state = evaluator.simulator.reset(evaluator.seed)
    obstacle = prepare_renderer(inner)
    if obstacle is not None:
        return obstacle
    frames: list[np.ndarray] = []
    for _ in track(range(n_segments), "Segments of the video", evaluator.progress_bar):
        state = film_segment(evaluator, guidance, pose, state, frames)
    # Not at the top: it takes a moment to import
    from moviepy import ImageSequenceClip

    ImageSequenceClip(frames, fps=FRAMES_PER_SECOND).write_videofile(str(file), logger=None)
    return None


def film_segment(
    evaluator: Evaluator, guidance: Guidance, pose: Pose, state: np.ndarray, frames: list[np.ndarray]
) -> np.ndarray:
    """
    :param evaluator: Model and environment, which is in the start state of the segment
    :param guidance: The guidance, its scale taken as it is
    :param pose: Computes the pose from an observation
    :param state: Observation vector of the start state
    :param frames: Gets a frame for each step
    :return: Observation vector of the state that the environment is in afterwards
    """
    env, simulator = evaluator.env, evaluator.simulator
    inner: Any = env.unwrapped
    start = th.as_tensor(state, device=evaluator.model.device)[None]
    segments, _ = evaluator.imagination.imagine(start, guidance, evaluator.generator)
    imagined = segments.map(lambda tensor: tensor[0].cpu().numpy())
    skipped = inner.data.qpos[: n_skipped(inner)].copy()
    for step, action in enumerate(imagined.actions):
        state, _, _, done = simulator.step(action)
        real_frame = inner.render()
        snapshot = simulator.snapshot()
        skipped = advanced(inner, pose, imagined.observations[step + 1], skipped)
        inner.set_state(*pose(inner, imagined.observations[step + 1], skipped))
        imagined_frame = inner.render()
        simulator.restore(snapshot)
        moment = f"step {step + 1} of {len(imagined.actions)}"
        pair = labelled(real_frame, f"real, {moment}"), labelled(imagined_frame, f"imagined, {moment}")
        frames.append(np.concatenate(pair, axis=1))
        if done:
            return simulator.reset()
    return state

"""Real and imagined motion side by side."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from PIL import Image, ImageDraw

from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.poses import Pose, advanced, find_pose, n_skipped, obstacle_to_draw
from sb3_agd.diagnostics.progress import track
from sb3_agd.imagination import Guidance

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

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


def film(evaluator: Evaluator, guidance: Guidance, n_segments: int) -> list[np.ndarray]:
    """
    Film segment after segment. Each is imagined from the real state at the end of the one before.

    :param evaluator: Model and environment, which :func:`sb3_agd.diagnostics.poses.obstacle_to_draw` has prepared
    :param guidance: The guidance, its scale taken as it is
    :param n_segments: Number of segments
    :return: Images, real motion left and imagined motion right
    """
    pose = find_pose(evaluator.env.unwrapped)
    assert pose is not None
    state = evaluator.simulator.reset(evaluator.seed)
    frames: list[np.ndarray] = []
    for _ in track(range(n_segments), "Segments of the video", evaluator.progress_bar):
        state = film_segment(evaluator, guidance, pose, state, frames)
    return frames


def save_film(evaluator: Evaluator, guidance: Guidance, n_segments: int, file: Path) -> str | None:
    """
    Film as :func:`film` does.

    :param file: Where to save the video
    :return: Why there is no video, ``None`` if there is one
    """
    if find_spec("moviepy") is None:
        return 'moviepy is not installed: pip install "sb3_agd[zoo]"'
    obstacle = obstacle_to_draw(evaluator.env)
    if obstacle is None:
        # Not at the top: it takes a moment to import
        from moviepy import ImageSequenceClip

        clip = ImageSequenceClip(film(evaluator, guidance, n_segments), fps=FRAMES_PER_SECOND)
        clip.write_videofile(str(file), logger=None)
    return obstacle


def animation(tag: str, frames: list[np.ndarray]) -> "Summary":
    """
    A film for TensorBoard. That of PyTorch's ``add_video``, which SB3's ``Video`` leads to, is empty with moviepy 2.

    :param tag: Name of the film
    :param frames: Images of equal size
    :return: An animated GIF at half the size
    """
    # Not at the top: TensorBoard is needed during training only
    from tensorboard.compat.proto.summary_pb2 import Summary

    images = [Image.fromarray(frame).reduce(2) for frame in frames]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)
    width, height = images[0].size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])


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
    n_imagined = int(imagined.mask.sum())
    skipped = inner.data.qpos[: n_skipped(inner)].copy()
    for step, action in enumerate(imagined.actions, start=1):
        state, _, _, done = simulator.step(action)
        real_frame, moment = inner.render(), f"step {step} of {len(imagined.actions)}"
        imagined_moment = f"ended at step {n_imagined}"
        # The last frame stays
        if step <= n_imagined:
            snapshot = simulator.snapshot()
            skipped = advanced(inner, pose, imagined.observations[step], skipped)
            inner.set_state(*pose(inner, imagined.observations[step], skipped))
            imagined_frame, imagined_moment = inner.render(), moment
            simulator.restore(snapshot)
        pair = labelled(real_frame, f"real, {moment}"), labelled(imagined_frame, f"imagined, {imagined_moment}")
        frames.append(np.concatenate(pair, axis=1))
        if done:
            return simulator.reset()
    return state

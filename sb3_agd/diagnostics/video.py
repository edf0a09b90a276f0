"""Real and imagined motion side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from PIL import Image, ImageDraw

from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.progress import track
from sb3_agd.imagination import Guidance

LABEL_POSITION = (12, 10)
LABEL_SIZE = 22
# Slow motion: in real time, a segment would last for a fraction of a second
FRAMES_PER_SECOND = 10


def pose_from_leading_coordinates(env: Any, state: np.ndarray, skipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    For tasks whose observation begins with the positions, except for the first few, and the velocities.

    :param env: MuJoCo environment
    :param state: Observation vector
    :param skipped: The positions that observations leave out
    :return: Positions and velocities of all joints
    """
    n_positions = env.model.nq - len(skipped)
    return np.concatenate([skipped, state[:n_positions]]), state[n_positions : n_positions + env.model.nv]


def pose_of_reacher(env: Any, state: np.ndarray, skipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See :func:`pose_from_leading_coordinates`; Reacher observes cosines and sines of its angles."""
    angles = np.arctan2(state[2:4], state[0:2])
    return np.concatenate([angles, state[4:6]]), np.concatenate([state[6:8], [0.0, 0.0]])


Pose = Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_pose(env: Any) -> Pose | None:
    """
    :param env: Innermost environment
    :return: Function that computes the pose of a MuJoCo model from an observation, ``None`` if there is none
    """
    if not hasattr(env, "set_state"):
        return None
    if hasattr(env, "observation_structure"):
        return pose_from_leading_coordinates
    return pose_of_reacher if type(env).__name__ == "ReacherEnv" else None


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


def prepare_renderer(env: Any) -> str | None:
    """
    Make rendering fast, and let the camera follow the robot.

    :param env: Innermost environment, a MuJoCo one that was not rendered yet
    :return: Why it cannot be rendered, ``None`` if it can
    """
    if env.render_mode != "rgb_array":
        return 'the environment was made without `render_mode="rgb_array"`'
    # Not at the top: MuJoCo is an extra
    import mujoco

    # Without a GPU, shadows and antialiasing take four fifths of the time
    env.model.vis.quality.shadowsize = 0
    env.model.vis.quality.offsamples = 0
    camera = mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if camera >= 0:
        # Gymnasium's own camera stands still, and a robot that runs is soon out of sight
        env.mujoco_renderer.camera_id = camera
    try:
        env.render()
    except Exception as error:  # Drivers fail in many ways
        return f"MuJoCo cannot render here ({error}). On a machine without a display, try MUJOCO_GL=egl"
    return None


def film(evaluator: Evaluator, guidance: Guidance, n_segments: int, file: Path) -> str | None:
    """
    Film segment after segment. Each is imagined from the real state at the end of the one before.

    :param evaluator: Model and environment
    :param guidance: The guidance, its scale taken as it is
    :param n_segments: Number of segments
    :param file: Where to save the video
    :return: Why there is no video, ``None`` if there is one
    """
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
    n_skipped = getattr(inner, "observation_structure", {}).get("skipped_qpos", 0)
    skipped = inner.data.qpos[:n_skipped].copy()
    for step, action in enumerate(imagined.actions):
        state, _, _, done = simulator.step(action)
        real_frame = inner.render()
        snapshot = simulator.snapshot()
        positions, velocities = pose(inner, imagined.observations[step + 1], skipped)
        # Observations leave out positions in the plane: they follow from the velocities
        skipped = skipped + velocities[:n_skipped] * inner.dt
        positions[:n_skipped] = skipped
        inner.set_state(positions, velocities)
        imagined_frame = inner.render()
        simulator.restore(snapshot)
        moment = f"step {step + 1} of {len(imagined.actions)}"
        pair = labelled(real_frame, f"real, {moment}"), labelled(imagined_frame, f"imagined, {moment}")
        frames.append(np.concatenate(pair, axis=1))
        if done:
            return simulator.reset()
    return state

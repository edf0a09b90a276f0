"""Real and imagined motion side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from PIL import Image, ImageDraw

from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.imagination import Guidance

LABEL_POSITION = (12, 10)
LABEL_SIZE = 22


def pose_from_leading_coordinates(env: Any, state: np.ndarray, skipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    For tasks whose observation begins with the positions, but for the first few, and the velocities.

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
    :return: What tells the pose of a MuJoCo model from an observation, ``None`` if nothing does
    """
    if not hasattr(env, "set_state"):
        return None
    if hasattr(env, "observation_structure"):
        return pose_from_leading_coordinates
    return pose_of_reacher if type(env).__name__ == "ReacherEnv" else None


def labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """
    :param frame: Image, shape (height, width, 3)
    :param text: What to write into its upper left corner
    :return: The image with the text
    """
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    draw.text(LABEL_POSITION, text, fill="white", stroke_fill="black", stroke_width=2, font_size=LABEL_SIZE)
    return np.asarray(image)


def film(evaluator: Evaluator, guidance: Guidance, n_segments: int, file: Path) -> str | None:
    """
    Film segment after segment. Each is imagined from the real state that the one before it led to.

    :param evaluator: Model and environment, which must be at rest
    :param guidance: The guidance, its scale taken as it is
    :param n_segments: Number of segments
    :param file: Where to save the video
    :return: What stands against a video, ``None`` if there is one
    """
    env: Any = evaluator.env
    simulator, inner = evaluator.simulator, env.unwrapped
    pose = find_pose(inner)
    if pose is None:
        return f"the state of {type(inner).__name__} cannot be told from its observations"
    if env.render_mode != "rgb_array":
        return 'the environment was made without `render_mode="rgb_array"`'
    # Here and not above: whoever has no MuJoCo needs none
    import mujoco

    follows = mujoco.mj_name2id(inner.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if follows >= 0:
        # Gymnasium's own camera stands still, and what runs is soon out of sight
        inner.mujoco_renderer.camera_id = follows
    frames: list[np.ndarray] = []
    state = simulator.reset(evaluator.seed)
    try:
        env.render()
    except Exception as error:  # Drivers fail in many ways
        return f"MuJoCo cannot render here ({error}). On a machine without a display, try MUJOCO_GL=egl"
    n_skipped = getattr(inner, "observation_structure", {}).get("skipped_qpos", 0)
    for _ in range(n_segments):
        start = th.as_tensor(state, device=evaluator.model.device)[None]
        segments, _ = evaluator.imagination.imagine(start, guidance, evaluator.generator)
        imagined = segments.map(lambda tensor: tensor[0].cpu().numpy())
        skipped = inner.data.qpos[:n_skipped].copy()
        for step, action in enumerate(imagined.actions):
            state, _, _, over = simulator.step(action)
            real_frame = env.render()
            # What observations leave out are positions in the plane: they follow from the velocities
            with simulator.undisturbed():
                positions, velocities = pose(inner, imagined.observations[step + 1], skipped)
                skipped = skipped + velocities[:n_skipped] * inner.dt
                positions[:n_skipped] = skipped
                inner.set_state(positions, velocities)
                imagined_frame = env.render()
            pair = labelled(real_frame, "real"), labelled(imagined_frame, f"imagined, {step + 1} steps ahead")
            frames.append(np.concatenate(pair, axis=1))
            if over:
                state = simulator.reset()
                break
    # A moment to import, and only here
    from moviepy import ImageSequenceClip

    clip = ImageSequenceClip(frames, fps=env.metadata["render_fps"])
    clip.write_videofile(str(file), logger=None)
    return None

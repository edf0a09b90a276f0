"""MuJoCo models in the poses that observations show."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

Pose = Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


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


def obstacle_to_draw(env: gym.Env, observation_space: gym.Space | None = None) -> str | None:
    """
    Prepare an environment to be drawn in the states that observations show.

    :param env: Environment with its wrappers, which is reset
    :param observation_space: Space of the observations, ``None`` for that of the environment
    :return: Why it cannot be drawn, ``None`` if it can
    """
    inner: Any = env.unwrapped
    if observation_space is None:
        observation_space = env.observation_space
    is_known = find_pose(inner) is not None and observation_space == env.observation_space == inner.observation_space
    # Wrappers may change observations and not their space
    if not is_known or not np.array_equal(env.reset(seed=0)[0], inner.reset(seed=0)[0]):
        return f"the pose of {type(inner).__name__} cannot be computed from the observations"
    return prepare_renderer(inner)


def n_skipped(env: Any) -> int:
    """
    :param env: Innermost environment
    :return: Number of leading positions that its observations leave out: those in the plane
    """
    return getattr(env, "observation_structure", {}).get("skipped_qpos", 0)


def advanced(env: Any, pose: Pose, state: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """
    :param env: MuJoCo environment
    :param pose: Computes the pose from an observation
    :param state: Observation vector after a step
    :param skipped: Positions that observations leave out, before the step
    :return: The same after the step, as they follow from the velocities
    """
    _, velocities = pose(env, state, skipped)
    return skipped + velocities[: len(skipped)] * env.dt


class Scene:
    """
    A MuJoCo task that is drawn in the states of imagined environments.

    :param spec: The task
    :param observation_space: Observation space of the imagined environments
    :param n_envs: Their number
    :raises ValueError: If their states cannot be drawn
    """

    def __init__(self, spec: EnvSpec, observation_space: gym.Space, n_envs: int):
        env = gym.make(spec.id, **spec.kwargs | {"render_mode": "rgb_array"})
        obstacle = obstacle_to_draw(env, observation_space)
        self.env: Any = env.unwrapped
        pose = find_pose(self.env)
        if pose is None or obstacle is not None:
            raise ValueError(obstacle)
        self.pose = pose
        self.skipped = [np.empty(0)] * n_envs

    def reset(self, index: int) -> None:
        """
        :param index: Number of an environment whose episode begins
        """
        self.skipped[index] = self.env.init_qpos[: n_skipped(self.env)]

    def step(self, states: np.ndarray) -> None:
        """
        :param states: Observation vectors of all environments after a step
        """
        pairs = zip(states, self.skipped, strict=True)
        self.skipped = [advanced(self.env, self.pose, *pair) for pair in pairs]

    def images(self, states: np.ndarray) -> list[np.ndarray]:
        """
        :param states: Observation vectors of all environments
        :return: Images of them
        """
        images = []
        for state, skipped in zip(states, self.skipped, strict=True):
            self.env.set_state(*self.pose(self.env, state, skipped))
            images.append(self.env.render())
        return images

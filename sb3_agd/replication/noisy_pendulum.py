"""A task whose next states are random given state and action, so that guidance of states has something to choose."""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control import PendulumEnv


class NoisyPendulumEnv(PendulumEnv):
    """
    ``Pendulum-v1`` with a random torque that acts beside the agent's in each step, registered as ``NoisyPendulum-v0`` when
    ``sb3_agd`` is imported. In processes that do not import it, ``gym.make("sb3_agd:NoisyPendulum-v0")`` does.

    :param torque_noise: Standard deviation of the random torque. The agent's torque is between -2 and 2
    :param kwargs: Further arguments of Gymnasium's environment
    :raises ValueError: If the noise is negative or not finite
    """

    def __init__(self, torque_noise: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= torque_noise < np.inf:
            raise ValueError(f"`torque_noise` must be a finite number of at least 0, not {torque_noise!r}")
        self.torque_noise = torque_noise

    def step(self, u: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        angle, velocity = self.state
        # As the agent's torque does, see Gymnasium's environment
        velocity += 3 / (self.m * self.l**2) * self.torque_noise * self.np_random.normal() * self.dt
        self.state = np.array([angle, np.clip(velocity, -self.max_speed, self.max_speed)])
        return super().step(u)

"""
Noise schedules. A noisy sample is ``x_t = alpha_t x0 + sigma_t eps`` with data ``x0`` and standard Gaussian noise ``eps``.
The time ``t`` runs from 0 (data) to 1 (noise).
"""

import math
from abc import ABC, abstractmethod

import torch as th


class Schedule(ABC):
    """Noise schedule: ``alpha_t`` and ``sigma_t`` at each time."""

    @abstractmethod
    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param time: Between 0 (data) and 1 (noise), any shape
        :return: ``alpha_t`` and ``sigma_t``, same shape
        """

    def add_noise(self, data: th.Tensor, noise: th.Tensor, time: th.Tensor) -> th.Tensor:
        """
        :param data: Shape (B, ...)
        :param noise: Standard Gaussian noise, same shape
        :param time: One time per row, shape (B,)
        :return: ``x_t``, same shape as the data
        """
        alpha, sigma = (c.view(-1, *[1] * (data.dim() - 1)) for c in self.coefficients(time))
        return alpha * data + sigma * noise

    @abstractmethod
    def time_at(self, signal: float) -> float:
        """
        :param signal: Ratio ``alpha_t / sigma_t``
        :return: The time with this ratio
        """


class LinearSchedule(Schedule):
    """``alpha_t = 1 - t``, ``sigma_t = t``: the straight path of flow matching (Liu et al., arXiv 2209.03003)."""

    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return 1 - time, time

    def time_at(self, signal: float) -> float:
        return 1 / (1 + signal)


class CosineSchedule(Schedule):
    """``alpha_t = cos(pi t / 2)``, ``sigma_t = sin(pi t / 2)`` (Nichol and Dhariwal, arXiv 2102.09672)."""

    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return th.cos(0.5 * math.pi * time), th.sin(0.5 * math.pi * time)

    def time_at(self, signal: float) -> float:
        return 2 / math.pi * math.atan2(1, signal)

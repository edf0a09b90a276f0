"""
Samplers: functions that turn noise into samples by repeated calls of a denoiser. They share one contract::

    sampler(denoise, noise, n_steps, draw_noise) -> samples

:param denoise: Predicts the data from a noisy sample and its time, ``denoise(x, t) -> denoised``
:param noise: Standard Gaussian noise to start from, any shape
:param n_steps: Number of equal steps from time 1 (noise) to time 0 (data)
:param draw_noise: Draws fresh standard Gaussian noise of the shape of ``noise``, for samplers that need it
:return: Samples, same shape as the noise; what the denoiser returned last

To add a sampler, write such a function and enter it into :data:`SAMPLERS` with the schedule that its denoiser is trained
with.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch as th

from sb3_agd.world_model.schedules import CosineSchedule, LinearSchedule, Schedule

Denoise = Callable[[th.Tensor, float], th.Tensor]
DrawNoise = Callable[[], th.Tensor]
Sampler = Callable[[Denoise, th.Tensor, int, DrawNoise], th.Tensor]

LINEAR, COSINE = LinearSchedule(), CosineSchedule()


def time_steps(n_steps: int) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """
    :param n_steps: Number of steps
    :return: The times between which each step leads, from noise to data, as scalars in double precision
    """
    times = th.linspace(1, 0, n_steps + 1, dtype=th.float64)
    yield from pairwise(times)


def reverse_step(
    schedule: Schedule, x: th.Tensor, denoised: th.Tensor, time: th.Tensor, earlier: th.Tensor, variance: float = 0.0
) -> th.Tensor:
    """
    The noise that the denoiser sees in ``x`` is scaled to the earlier time and mixed with the denoised sample. The step is
    that of DDIM (Song et al., arXiv 2010.02502, equation 12), on the linear schedule an Euler step of flow matching.

    :param schedule: Noise schedule
    :param x: Noisy sample
    :param denoised: What the denoiser makes of it
    :param time: Time of the noisy sample
    :param earlier: Time that the step leads to
    :param variance: Variance of the fresh noise that the caller adds
    :return: Sample at the earlier time, without fresh noise
    """
    alpha_t, sigma_t = schedule.coefficients(time)
    alpha_s, sigma_s = schedule.coefficients(earlier)
    noise = (x - alpha_t.item() * denoised) / sigma_t.item()
    return alpha_s.item() * denoised + (sigma_s**2 - variance).clamp(min=0).sqrt().item() * noise


def sample_first_order(
    schedule: Schedule, ancestral: bool, denoise: Denoise, noise: th.Tensor, n_steps: int, draw_noise: DrawNoise
) -> th.Tensor:
    """
    One call of the denoiser per step: flow matching with Euler steps (Liu et al., arXiv 2209.03003), DDIM (Song et al., arXiv
    2010.02502) or DDPM (Ho et al., arXiv 2006.11239). See the module for the contract.

    :param schedule: Noise schedule
    :param ancestral: Whether there is fresh noise in each step
    """
    x = noise
    for time, earlier in time_steps(n_steps):
        variance = posterior_variance(schedule, time, earlier).item() if ancestral else 0.0
        x = reverse_step(schedule, x, denoise(x, time.item()), time, earlier, variance)
        if variance > 0:
            x = x + math.sqrt(variance) * draw_noise()
    return x


def sample_heun(denoise: Denoise, noise: th.Tensor, n_steps: int, draw_noise: DrawNoise) -> th.Tensor:
    """
    Flow matching with Heun's second-order steps (Karras et al., arXiv 2206.00364, algorithm 1). All steps but the last call
    the denoiser twice.
    """
    x = noise
    for time, earlier in time_steps(n_steps):
        denoised = denoise(x, time.item())
        ahead = reverse_step(LINEAR, x, denoised, time, earlier)
        if earlier.item() > 0:
            velocity = (x - denoised) / time.item()
            velocity_ahead = (ahead - denoise(ahead, earlier.item())) / earlier.item()
            ahead = x + 0.5 * (earlier - time).item() * (velocity + velocity_ahead)
        x = ahead
    return x


def posterior_variance(schedule: Schedule, time: th.Tensor, earlier: th.Tensor) -> th.Tensor:
    """
    Variance of ``x_s`` given ``x_t`` and the data (arXiv 2006.11239, equation 7).

    :param schedule: Noise schedule
    :param time: Time ``t`` of the noisy sample
    :param earlier: Time ``s < t`` that the step leads to
    :return: The variance of the fresh noise of an ancestral step
    """
    alpha_t, sigma_t = schedule.coefficients(time)
    alpha_s, sigma_s = schedule.coefficients(earlier)
    return sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)


SAMPLERS: dict[str, tuple[Sampler, Schedule]] = {
    "flow": (partial(sample_first_order, LINEAR, False), LINEAR),
    "heun": (sample_heun, LINEAR),
    "ddim": (partial(sample_first_order, COSINE, False), COSINE),
    "ddpm": (partial(sample_first_order, COSINE, True), COSINE),
}

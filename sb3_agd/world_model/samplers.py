"""
Gaussian probability paths between data and noise, and the one update rule that all samplers share.

A path mixes clean data ``x0`` and Gaussian noise ``eps`` as ``x_t = alpha_t x0 + sigma_t eps`` for a time ``t`` in
[0, 1], from pure data (t = 0) to pure noise (t = 1). Given a denoiser that predicts ``x0`` from ``x_t``, a step to
an earlier time ``s`` is

    eps_hat = (x_t - alpha_t x0_hat) / sigma_t
    x_s     = alpha_s x0_hat + sqrt(sigma_s^2 - v^2) eps_hat + v z,    z ~ N(0, I)

which is DDPM's ancestral step on the cosine path with its posterior variance as ``v^2``, DDIM with ``v = 0``, and an
Euler step of flow matching on the straight path with ``v = 0``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch as th

# Clean estimate from (noisy sample, time): the contract between samplers and networks.
Denoise = Callable[[th.Tensor, float], th.Tensor]
# Corrected clean estimate from (clean estimate, weight of the guidance at this time).
Guidance = Callable[[th.Tensor, float], th.Tensor]


class GaussianPath(ABC):
    """A path from data to noise, ``x_t = alpha_t x0 + sigma_t eps``."""

    @abstractmethod
    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param time: Between 0 (data) and 1 (noise), any shape
        :return: ``alpha_t`` and ``sigma_t``, same shape
        """

    def step_variance(self, time: th.Tensor, earlier: th.Tensor) -> th.Tensor:
        """
        :param time: Time ``t`` of the noisy sample
        :param earlier: Time ``s < t`` that the step leads to
        :return: ``v^2``, the variance of the fresh noise of the step; zero for a deterministic sampler
        """
        return th.zeros_like(time)

    def add_noise(self, clean: th.Tensor, noise: th.Tensor, time: th.Tensor) -> th.Tensor:
        """
        :param clean: Data, shape (B, ...)
        :param noise: Standard Gaussian noise, same shape
        :param time: One time per row, shape (B,)
        :return: ``x_t``, same shape as the data
        """
        alpha, sigma = (c.view(-1, *[1] * (clean.dim() - 1)) for c in self.coefficients(time))
        return alpha * clean + sigma * noise

    def guidance_weight(self, time: th.Tensor) -> th.Tensor:
        """
        Variance of standardised data given its noisy version, ``sigma^2 / (alpha^2 + sigma^2)``. With it, guiding by
        ``c * grad J`` tilts a standard Gaussian by exactly ``exp(c J)`` for every linear ``J``, so that one scale
        means the same for each path and number of steps.

        :param time: Time of the noisy sample
        :return: Weight of the guidance between 0 and 1
        """
        alpha, sigma = self.coefficients(time)
        return sigma**2 / (alpha**2 + sigma**2)


class RectifiedFlow(GaussianPath):
    """Straight path of flow matching, sampled by Euler steps (Liu et al., arXiv 2209.03003)."""

    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return 1 - time, time


class CosinePath(GaussianPath):
    """
    Variance-preserving cosine path (Nichol and Dhariwal, arXiv 2102.09672) with the deterministic steps of DDIM
    (Song et al., arXiv 2010.02502).
    """

    def coefficients(self, time: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return th.cos(0.5 * math.pi * time), th.sin(0.5 * math.pi * time)


class AncestralCosinePath(CosinePath):
    """Cosine path with the stochastic steps of DDPM (Ho et al., arXiv 2006.11239), equation 7."""

    def step_variance(self, time: th.Tensor, earlier: th.Tensor) -> th.Tensor:
        alpha_t, sigma_t = self.coefficients(time)
        alpha_s, sigma_s = self.coefficients(earlier)
        return sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)


PATHS: dict[str, type[GaussianPath]] = {"flow": RectifiedFlow, "ddim": CosinePath, "ddpm": AncestralCosinePath}


def sample(
    path: GaussianPath,
    denoise: Denoise,
    noise: th.Tensor,
    n_steps: int,
    generator: th.Generator | None = None,
    guide: Guidance | None = None,
    n_candidates: int = 1,
) -> th.Tensor:
    """
    Turn noise into data by ``n_steps`` equal steps of the path's reverse process.

    :param path: The Gaussian path, which also decides between deterministic and stochastic steps
    :param denoise: Predicts clean data from a noisy sample and its time
    :param noise: Standard Gaussian noise that the process starts from, any shape
    :param n_steps: Number of calls of the denoiser
    :param generator: Source of the fresh noise of stochastic steps
    :param guide: Moves the clean estimate at every step except the last, which only the denoiser may decide
    :param n_candidates: So many consecutive samples share their fresh noise
    :return: Samples, same shape as the noise
    """
    times = th.linspace(1, 0, n_steps + 1, dtype=th.float64)
    x = noise
    for step in range(n_steps):
        time, earlier = times[step], times[step + 1]
        clean = denoise(x, time.item())
        if guide is not None and step < n_steps - 1:
            clean = guide(clean, path.guidance_weight(time).item())
        alpha_t, sigma_t = path.coefficients(time)
        alpha_s, sigma_s = path.coefficients(earlier)
        variance = path.step_variance(time, earlier)
        direction = (x - alpha_t.item() * clean) / sigma_t.item()
        x = alpha_s.item() * clean + (sigma_s**2 - variance).clamp(min=0).sqrt().item() * direction
        if variance.item() > 0:
            shape = (len(x) // n_candidates, *x.shape[1:])
            fresh = th.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + variance.sqrt().item() * fresh.repeat_interleave(n_candidates, dim=0)
    return x

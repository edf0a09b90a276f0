"""Samplers against closed forms: the exact denoiser of Gaussian data is known."""

import pytest
import torch as th

from sb3_agd.world_model.samplers import COSINE, SAMPLERS, Denoise, posterior_variance
from sb3_agd.world_model.schedules import Schedule

MEAN = th.tensor([1.0, -2.0, 0.5], dtype=th.float64)
COVARIANCE = th.tensor([[1.0, 0.6, -0.2], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.3]], dtype=th.float64)
IDENTITY = th.eye(3, dtype=th.float64)
N_SAMPLES = 20_000
each_sampler = pytest.mark.parametrize("sampler", sorted(SAMPLERS))


def exact_denoiser(schedule: Schedule, mean: th.Tensor, covariance: th.Tensor) -> Denoise:
    """
    Posterior mean of ``x0 ~ N(mean, covariance)`` given ``x_t = alpha x0 + sigma eps``, a linear regression:
    ``mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mean)``.
    """

    def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
        alpha, sigma = schedule.coefficients(th.tensor(time, dtype=th.float64))
        gain = alpha * covariance @ th.linalg.inv(alpha**2 * covariance + sigma**2 * IDENTITY)
        return mean + (noisy - alpha * mean) @ gain.T

    return denoise


def sample(sampler: str, denoise: Denoise, noise: th.Tensor, n_steps: int, generator: th.Generator | None = None) -> th.Tensor:
    function, _ = SAMPLERS[sampler]
    return function(denoise, noise, n_steps, lambda: th.randn(noise.shape, generator=generator, dtype=noise.dtype))


def draw_noise(n_samples: int = N_SAMPLES, seed: int = 0) -> tuple[th.Tensor, th.Generator]:
    generator = th.Generator().manual_seed(seed)
    return th.randn(n_samples, 3, generator=generator, dtype=th.float64), generator


def mean_tolerance(covariance: th.Tensor) -> th.Tensor:
    """Four standard errors of a sample mean."""
    return 4 * (covariance.diagonal() / N_SAMPLES).sqrt()


def covariance_tolerance(covariance: th.Tensor) -> th.Tensor:
    """Four standard errors of a sample covariance of Gaussian data."""
    variances = covariance.diagonal()
    return 4 * ((variances[:, None] * variances + covariance**2) / N_SAMPLES).sqrt()


@each_sampler
def test_sampler_reproduces_mean_and_covariance_of_gaussian_data(sampler: str) -> None:
    n_steps = 200
    noise, generator = draw_noise()
    samples = sample(sampler, exact_denoiser(SAMPLERS[sampler][1], MEAN, COVARIANCE), noise, n_steps, generator)
    # Most samplers are of first order: on top of the Monte-Carlo error their bias falls as 1 / n_steps
    bias = 5 / n_steps
    assert ((samples.mean(0) - MEAN).abs() < mean_tolerance(COVARIANCE)).all()
    assert ((th.cov(samples.T) - COVARIANCE).abs() < covariance_tolerance(COVARIANCE) + bias).all()


@pytest.mark.parametrize("sampler, order", [("flow", 1), ("ddim", 1), ("heun", 2)])
def test_error_of_deterministic_samplers_falls_with_their_order(sampler: str, order: int) -> None:
    """With the exact denoiser the sampler is an affine map of the noise; its matrix follows from the unit vectors."""
    denoise = exact_denoiser(SAMPLERS[sampler][1], MEAN, COVARIANCE)
    errors = []
    for n_steps in (128, 256, 512):
        shift = sample(sampler, denoise, th.zeros_like(IDENTITY), n_steps)
        matrix = sample(sampler, denoise, IDENTITY, n_steps) - shift
        assert th.allclose(shift, MEAN.expand_as(shift), atol=1e-9)
        errors.append((matrix.T @ matrix - COVARIANCE).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("variance", [0.01, 0.1, 1.0])
def test_two_flow_steps_shrink_the_deviation_by_a_known_factor(variance: float) -> None:
    """The guide for users says so: they come close to the mean, which suits tasks where nothing is left to chance."""
    covariance = variance * IDENTITY
    noise, _ = draw_noise(n_samples=5)
    samples = sample("flow", exact_denoiser(SAMPLERS["flow"][1], MEAN, covariance), noise, 2)
    assert th.allclose(samples, MEAN + variance / (1 + variance) * noise)


@each_sampler
def test_sampler_returns_the_denoised_sample_of_the_last_step(sampler: str) -> None:
    estimates = []

    def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
        estimates.append(th.sin(noisy) + time)
        return estimates[-1]

    noise, generator = draw_noise(n_samples=5)
    samples = sample(sampler, denoise, noise, 4, generator)
    assert len(estimates) == (7 if sampler == "heun" else 4)
    assert th.allclose(samples, estimates[-1])


@each_sampler
def test_single_step_returns_the_denoised_sample_of_pure_noise(sampler: str) -> None:
    noise, generator = draw_noise(n_samples=5)
    samples = sample(sampler, exact_denoiser(SAMPLERS[sampler][1], MEAN, COVARIANCE), noise, 1, generator)
    assert th.allclose(samples, MEAN.expand_as(samples))


def test_ddpm_step_is_the_textbook_posterior() -> None:
    """
    Equations 6 and 7 of DDPM (arXiv 2006.11239) with ``alpha_bar = alpha_t^2``: the posterior of ``x_s`` given
    ``x_t`` and ``x0``.
    """
    n_steps = 6
    noisy, clean = [], []

    def denoise(x: th.Tensor, time: float) -> th.Tensor:
        noisy.append(x)
        clean.append(th.sin(3 * x) + time)
        return clean[-1]

    noise, generator = draw_noise(n_samples=10)
    replay = th.Generator().set_state(generator.get_state())
    sample("ddpm", denoise, noise, n_steps, generator)

    alpha_bar = th.cos(0.5 * th.pi * th.linspace(1, 0, n_steps + 1, dtype=th.float64)) ** 2
    for step in range(n_steps - 1):
        now, earlier = alpha_bar[step], alpha_bar[step + 1]
        beta = 1 - now / earlier
        mean = (earlier.sqrt() * beta * clean[step] + (1 - beta).sqrt() * (1 - earlier) * noisy[step]) / (1 - now)
        variance = (1 - earlier) / (1 - now) * beta
        fresh = th.randn(noise.shape, generator=replay, dtype=th.float64)
        assert th.allclose(noisy[step + 1], mean + variance.sqrt() * fresh)


def test_ddpm_step_variance_is_the_textbook_posterior_variance() -> None:
    times = th.linspace(1, 0, 129, dtype=th.float64)
    time, earlier = times[:-1], times[1:]
    alpha_bar, alpha_bar_earlier = (COSINE.coefficients(t)[0] ** 2 for t in (time, earlier))
    beta = 1 - alpha_bar / alpha_bar_earlier
    expected = (1 - alpha_bar_earlier) / (1 - alpha_bar) * beta
    assert th.allclose(posterior_variance(COSINE, time, earlier), expected, atol=1e-12)


@pytest.mark.parametrize("sampler", ["flow", "heun", "ddim"])
def test_deterministic_samplers_draw_no_fresh_noise(sampler: str) -> None:
    noise, generator = draw_noise(n_samples=10)
    before = generator.get_state()
    sample(sampler, exact_denoiser(SAMPLERS[sampler][1], MEAN, COVARIANCE), noise, 8, generator)
    assert th.equal(generator.get_state(), before)


@each_sampler
def test_same_generator_seed_gives_the_same_samples(sampler: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        noise, generator = draw_noise(n_samples=10, seed=seed)
        runs.append(sample(sampler, exact_denoiser(SAMPLERS[sampler][1], MEAN, COVARIANCE), noise, 8, generator))
    assert th.equal(runs[0], runs[1])
    assert not th.equal(runs[0], runs[2])


@each_sampler
def test_samples_keep_shape_and_precision_of_the_noise(sampler: str) -> None:
    noise = th.randn(2, 4, 3, generator=th.Generator().manual_seed(0))
    samples = sample(sampler, lambda noisy, time: 0.5 * noisy, noise, 4, th.Generator().manual_seed(1))
    assert samples.shape == noise.shape
    assert samples.dtype == th.float32

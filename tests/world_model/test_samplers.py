"""Samplers and guidance against closed forms: the exact denoiser of Gaussian data is known."""

import pytest
import torch as th

from sb3_agd.world_model.samplers import PATHS, Denoise, GaussianPath, sample

MEAN = th.tensor([1.0, -2.0, 0.5], dtype=th.float64)
COVARIANCE = th.tensor([[1.0, 0.6, -0.2], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.3]], dtype=th.float64)
IDENTITY = th.eye(3, dtype=th.float64)
# Gradient of a linear objective
SLOPE = th.tensor([0.5, -1.0, 0.2], dtype=th.float64)
N_SAMPLES = 20_000

each_sampler = pytest.mark.parametrize("sampler", sorted(PATHS))


def exact_denoiser(path: GaussianPath, mean: th.Tensor, covariance: th.Tensor) -> Denoise:
    """
    Posterior mean of ``x0 ~ N(mean, covariance)`` given ``x_t = alpha x0 + sigma eps``, a linear regression:
    ``mean + alpha S (alpha^2 S + sigma^2 I)^-1 (x_t - alpha mean)``.
    """

    def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
        alpha, sigma = path.coefficients(th.tensor(time, dtype=th.float64))
        gain = alpha * covariance @ th.linalg.inv(alpha**2 * covariance + sigma**2 * IDENTITY)
        return mean + (noisy - alpha * mean) @ gain.T

    return denoise


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
    path, n_steps = PATHS[sampler](), 200
    noise, generator = draw_noise()
    samples = sample(path, exact_denoiser(path, MEAN, COVARIANCE), noise, n_steps, generator)
    # All samplers are of first order: on top of the Monte-Carlo error their bias falls as 1 / n_steps
    bias = 5 / n_steps
    assert ((samples.mean(0) - MEAN).abs() < mean_tolerance(COVARIANCE)).all()
    assert ((th.cov(samples.T) - COVARIANCE).abs() < covariance_tolerance(COVARIANCE) + bias).all()


@pytest.mark.parametrize("sampler", ["flow", "ddim"])
def test_error_of_deterministic_sampler_halves_when_the_steps_double(sampler: str) -> None:
    """With the exact denoiser the sampler is an affine map of the noise; its matrix follows from the unit vectors."""
    path = PATHS[sampler]()
    denoise = exact_denoiser(path, MEAN, COVARIANCE)
    errors = []
    for n_steps in (128, 256, 512):
        shift = sample(path, denoise, th.zeros_like(IDENTITY), n_steps)
        matrix = sample(path, denoise, IDENTITY, n_steps) - shift
        assert th.allclose(shift, MEAN.expand_as(shift), atol=1e-9)
        errors.append((matrix.T @ matrix - COVARIANCE).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("variance", [0.01, 0.1, 1.0])
def test_two_flow_steps_understate_chance_by_a_known_factor(variance: float) -> None:
    """The guide for users says so: they come close to the mean, which suits tasks where nothing is left to chance."""
    path, covariance = PATHS["flow"](), variance * IDENTITY
    noise, _ = draw_noise(n_samples=5)
    samples = sample(path, exact_denoiser(path, MEAN, covariance), noise, 2)
    assert th.allclose(samples, MEAN + variance / (1 + variance) * noise)


@each_sampler
def test_sampler_returns_the_clean_estimate_of_the_last_step(sampler: str) -> None:
    path, estimates = PATHS[sampler](), []

    def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
        estimates.append(th.sin(noisy) + time)
        return estimates[-1]

    noise, generator = draw_noise(n_samples=5)
    samples = sample(path, denoise, noise, 4, generator)
    assert len(estimates) == 4
    assert th.allclose(samples, estimates[-1])


@each_sampler
def test_single_step_returns_the_clean_estimate_of_pure_noise(sampler: str) -> None:
    path = PATHS[sampler]()
    noise, generator = draw_noise(n_samples=5)
    samples = sample(path, exact_denoiser(path, MEAN, COVARIANCE), noise, 1, generator)
    assert th.allclose(samples, MEAN.expand_as(samples))


@each_sampler
def test_guidance_raises_a_linear_objective_monotonically(sampler: str) -> None:
    path = PATHS[sampler]()
    denoise = exact_denoiser(path, MEAN, COVARIANCE)
    objectives = []
    for scale in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
        noise, generator = draw_noise(n_samples=2000)
        samples = sample(path, denoise, noise, 16, generator, lambda clean, weight, s=scale: clean + s * weight * SLOPE)
        objectives.append((samples @ SLOPE).mean().item())
    gains = th.tensor(objectives).diff()
    assert (gains > 0.01).all()


@each_sampler
def test_guidance_tilts_standard_gaussian_data_exactly(sampler: str) -> None:
    """
    A standard Gaussian reweighted by ``exp(c g x)`` is a Gaussian of mean ``c g`` with the same covariance. The
    weight of the guidance makes this hold for each path, so that a scale means the same for all samplers.
    """
    path, scale, n_steps = PATHS[sampler](), 1.5, 200
    denoise = exact_denoiser(path, th.zeros_like(MEAN), IDENTITY)
    noise, generator = draw_noise()
    samples = sample(path, denoise, noise, n_steps, generator, lambda clean, weight: clean + scale * weight * SLOPE)
    bias = 5 / n_steps
    assert ((samples.mean(0) - scale * SLOPE).abs() < mean_tolerance(IDENTITY) + 0.2 * bias).all()
    assert ((th.cov(samples.T) - IDENTITY).abs() < covariance_tolerance(IDENTITY) + bias).all()


@pytest.mark.parametrize("n_steps", [4, 8, 32])
@each_sampler
def test_few_steps_tilt_almost_as_far_as_many(sampler: str, n_steps: int) -> None:
    """The shift that the guide causes does not depend on the noise: two runs with the same noise show it."""
    path = PATHS[sampler]()
    denoise = exact_denoiser(path, th.zeros_like(MEAN), IDENTITY)
    runs = []
    for guide in (None, lambda clean, weight: clean + weight * SLOPE):
        noise, generator = draw_noise(n_samples=2)
        runs.append(sample(path, denoise, noise, n_steps, generator, guide))
    shift = (runs[1] - runs[0])[0]
    assert th.allclose(shift / SLOPE, th.ones_like(SLOPE), atol=1 / n_steps)


@each_sampler
def test_guidance_of_scale_zero_changes_no_bit(sampler: str) -> None:
    path = PATHS[sampler]()
    denoise = exact_denoiser(path, MEAN, COVARIANCE)
    noise, generator = draw_noise(n_samples=100)
    unguided = sample(path, denoise, noise, 8, generator)
    noise, generator = draw_noise(n_samples=100)
    guided = sample(path, denoise, noise, 8, generator, lambda clean, weight: clean + 0.0 * weight * SLOPE)
    assert th.equal(unguided, guided)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@each_sampler
def test_last_step_is_never_guided(sampler: str, n_steps: int) -> None:
    path, times, weights = PATHS[sampler](), [], []

    def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
        times.append(time)
        return noisy

    def guide(clean: th.Tensor, weight: float) -> th.Tensor:
        weights.append(weight)
        return clean

    noise, generator = draw_noise(n_samples=2)
    sample(path, denoise, noise, n_steps, generator, guide)
    assert times == pytest.approx([1 - step / n_steps for step in range(n_steps)])
    expected = path.guidance_weight(th.tensor(times[:-1], dtype=th.float64))
    assert weights == pytest.approx(expected.tolist())


@each_sampler
def test_guidance_weight_is_the_posterior_variance_of_standard_gaussian_data(sampler: str) -> None:
    path, time = PATHS[sampler](), th.linspace(0, 1, 11, dtype=th.float64)
    alpha, sigma = path.coefficients(time)
    # Conditional variance of x0 given x_t: 1 - cov(x0, x_t)^2 / var(x_t)
    assert th.allclose(path.guidance_weight(time), 1 - alpha**2 / (alpha**2 + sigma**2))


@each_sampler
def test_paths_lead_from_data_to_noise(sampler: str) -> None:
    alpha, sigma = PATHS[sampler]().coefficients(th.linspace(0, 1, 101, dtype=th.float64))
    assert alpha[0] == pytest.approx(1)
    assert alpha[-1] == pytest.approx(0, abs=1e-12)
    assert sigma[0] == pytest.approx(0, abs=1e-12)
    assert sigma[-1] == pytest.approx(1)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 5, 3)])
@each_sampler
def test_noise_is_mixed_in_row_by_row(sampler: str, shape: tuple[int, ...]) -> None:
    path = PATHS[sampler]()
    generator = th.Generator().manual_seed(0)
    clean, noise = th.randn(shape, generator=generator), th.randn(shape, generator=generator)
    time = th.tensor([0.0, 0.2, 0.7, 1.0])
    noisy = path.add_noise(clean, noise, time)
    assert noisy.shape == shape
    for row in range(4):
        alpha, sigma = path.coefficients(time[row])
        assert th.allclose(noisy[row], alpha * clean[row] + sigma * noise[row])
    assert th.allclose(noisy[0], clean[0])
    assert th.allclose(noisy[-1], noise[-1], atol=1e-6)


def test_ddpm_step_is_the_textbook_posterior() -> None:
    """
    Equations 6 and 7 of DDPM (arXiv 2006.11239) with ``alpha_bar = alpha_t^2``: the posterior of ``x_s`` given
    ``x_t`` and ``x0``.
    """
    path, n_steps = PATHS["ddpm"](), 6
    noisy, clean = [], []

    def denoise(x: th.Tensor, time: float) -> th.Tensor:
        noisy.append(x)
        clean.append(th.sin(3 * x) + time)
        return clean[-1]

    noise, generator = draw_noise(n_samples=10)
    replay = th.Generator().set_state(generator.get_state())
    sample(path, denoise, noise, n_steps, generator)

    alpha_bar = th.cos(0.5 * th.pi * th.linspace(1, 0, n_steps + 1, dtype=th.float64)) ** 2
    for step in range(n_steps - 1):
        now, earlier = alpha_bar[step], alpha_bar[step + 1]
        beta = 1 - now / earlier
        mean = (earlier.sqrt() * beta * clean[step] + (1 - beta).sqrt() * (1 - earlier) * noisy[step]) / (1 - now)
        variance = (1 - earlier) / (1 - now) * beta
        fresh = th.randn(noise.shape, generator=replay, dtype=th.float64)
        assert th.allclose(noisy[step + 1], mean + variance.sqrt() * fresh)


def test_ddpm_step_variance_is_the_textbook_posterior_variance() -> None:
    path = PATHS["ddpm"]()
    times = th.linspace(1, 0, 129, dtype=th.float64)
    time, earlier = times[:-1], times[1:]
    alpha_bar, alpha_bar_earlier = (path.coefficients(t)[0] ** 2 for t in (time, earlier))
    beta = 1 - alpha_bar / alpha_bar_earlier
    expected = (1 - alpha_bar_earlier) / (1 - alpha_bar) * beta
    assert th.allclose(path.step_variance(time, earlier), expected, atol=1e-12)


@pytest.mark.parametrize("sampler", ["flow", "ddim"])
def test_deterministic_samplers_draw_no_fresh_noise(sampler: str) -> None:
    path = PATHS[sampler]()
    noise, generator = draw_noise(n_samples=10)
    before = generator.get_state()
    sample(path, exact_denoiser(path, MEAN, COVARIANCE), noise, 8, generator)
    assert th.equal(generator.get_state(), before)


@each_sampler
def test_same_generator_seed_gives_the_same_samples(sampler: str) -> None:
    path = PATHS[sampler]()
    runs = []
    for seed in (0, 0, 1):
        noise, generator = draw_noise(n_samples=10, seed=seed)
        runs.append(sample(path, exact_denoiser(path, MEAN, COVARIANCE), noise, 8, generator))
    assert th.equal(runs[0], runs[1])
    assert not th.equal(runs[0], runs[2])


@each_sampler
def test_samples_keep_shape_and_precision_of_the_noise(sampler: str) -> None:
    noise = th.randn(2, 4, 3, generator=th.Generator().manual_seed(0))
    samples = sample(PATHS[sampler](), lambda noisy, time: 0.5 * noisy, noise, 4, th.Generator().manual_seed(1))
    assert samples.shape == noise.shape
    assert samples.dtype == th.float32

"""Training of the world model."""

import copy
import dataclasses
from typing import Any

import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    HORIZON,
    OBSERVATION_DIM,
    GaussianDenoiser,
    Recording,
    assert_equal,
    by_chance,
    each_network,
    fitted,
    linear_policy,
    linear_segments,
    make_model,
    observe,
    prediction_errors,
    randomised,
    seeded,
    well_fitted,
)
from torch import nn

from sb3_agd.world_model import Segments
from sb3_agd.world_model.denoisers import ResidualMLPDenoiser


@each_network
def test_fit_learns_a_deterministic_linear_system(network: str) -> None:
    model = well_fitted(Recording(), network=network)
    errors = prediction_errors(model, Recording(seed=5).segments(500), seeded(6))
    assert errors["states"].shape == errors["persistence"].shape == errors["rewards"].shape == (HORIZON,)
    assert (errors["states"] < 0.1 * errors["persistence"]).all()
    assert (errors["rewards"] < 0.1).all()


def test_fit_reports_losses_that_fall() -> None:
    model, source, updates = make_model(), Recording(by_chance), []
    observe(model, source.every_transition())

    def fit(gradient_steps: int) -> dict[str, float]:
        return model.fit(source, gradient_steps, 64, generator=seeded(), on_update=lambda: updates.append(1))

    first = fit(5)
    fit(100)
    last = fit(5)
    assert set(first) == {"denoising_loss", "termination_loss"}
    assert last["denoising_loss"] < 0.5 * first["denoising_loss"]
    assert len(updates) == 110


def test_fit_takes_a_new_learning_rate() -> None:
    model, source = make_model(), Recording(by_chance)
    before = {name: value.clone() for name, value in model.networks.named_parameters()}
    model.fit(source, 1, 8, learning_rate=0.0, generator=seeded())
    assert all(th.equal(value, before[name]) for name, value in model.networks.named_parameters())
    model.fit(source, 1, 8, learning_rate=1e-2, generator=seeded())
    assert not all(th.equal(value, before[name]) for name, value in model.networks.named_parameters())


def test_fit_of_no_updates_changes_nothing() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model.fit(Recording(), 0, 8, generator=seeded())
    assert losses == {"denoising_loss": 0.0, "termination_loss": 0.0}
    assert all(th.equal(value, before[name]) for name, value in model.state_dict().items())


class Constant:
    """
    Always the same segments.

    :param drawn: The segments
    """

    termination_rate = 0.0

    def __init__(self, drawn: Segments):
        self.drawn = drawn

    def segments(self, n_segments: int) -> Segments:
        return self.drawn

    def terminal_transitions(self, n_transitions: int) -> Segments:
        raise NotImplementedError("There are none")


class Rescaled(Recording):
    """The linear system in other units, with a third dimension that never changes."""

    def cut(self, starts: th.Tensor, horizon: int) -> Segments:
        segments = super().cut(starts, horizon)
        states = segments.observations * th.tensor([1e6, 1e-6]) + th.tensor([1e6, 0.0])
        return dataclasses.replace(
            segments,
            observations=th.cat([states, th.full_like(states[..., :1], 0.1)], dim=-1),
            actions=segments.actions * 1e3,
            rewards=segments.rewards * 1e6,
        )


def test_constant_dimensions_and_extreme_scales_are_learned_alike() -> None:
    model = well_fitted(Rescaled(), observation_dim=3)
    held_out = Rescaled(seed=5).segments(500)
    errors = prediction_errors(model, held_out, seeded(6))
    assert (errors["states"] < 0.2 * errors["persistence"]).all()
    assert (errors["rewards"] < 0.2).all()
    imagined = model.imagine(held_out.observations[:, 0], lambda _, steps: held_out.actions[:, steps], generator=seeded(7))
    assert th.allclose(imagined.observations[..., 2], th.tensor(0.1))


def test_masked_steps_do_not_change_the_loss() -> None:
    model = randomised(make_model(network="recurrent"))
    segments = Recording(by_chance).segments(50)
    mask = segments.mask
    assert not mask.all()
    reached = th.cat([th.ones(len(mask), 1, dtype=th.bool), mask], dim=1)[..., None]
    changed = dataclasses.replace(
        segments,
        observations=th.where(reached, segments.observations, 5.0),
        actions=th.where(mask[..., None], segments.actions, -3.0),
        rewards=th.where(mask, segments.rewards, 9.0),
    )
    losses = [model.denoising_loss(s, seeded(3)).item() for s in (segments, changed)]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("n_steps", [1, 2, 16])
def test_noise_levels_in_training_are_those_of_the_sampler(n_steps: int) -> None:
    levels = []

    class Listening(ResidualMLPDenoiser):
        def forward(self, noisy: th.Tensor, time: th.Tensor, *rest: Any) -> th.Tensor:
            levels.append(time)
            return super().forward(noisy, time, *rest)

    fitted(Recording(), 30, network=Listening, n_denoising_steps=n_steps)
    roots = th.cat(levels).sqrt().sort().values
    lowest = {1: 0.5, 2: 0.5, 16: 1 / 16}[n_steps] ** 0.5
    uniform = (roots - lowest) / (1 - lowest)
    assert uniform.min() > -1e-6 and uniform.max() <= 1
    # The largest distance of the two distribution functions is beyond this with a probability of 1e-5
    expected = (th.arange(len(uniform)) + 0.5) / len(uniform)
    assert (uniform - expected).abs().max() < 2.5 / len(uniform) ** 0.5


class WhiteNoise:
    """Segments of one transition to a state that is the start state plus Gaussian noise, and a reward that is noise."""

    termination_rate = 0.0
    variance = 0.3

    def __init__(self) -> None:
        self.generator = seeded()

    def segments(self, n_segments: int) -> Segments:
        def noise(*shape: int) -> th.Tensor:
            return th.randn(n_segments, *shape, generator=self.generator)

        start = noise(1, OBSERVATION_DIM)
        following = (1 - self.variance) ** 0.5 * start + self.variance**0.5 * noise(1, OBSERVATION_DIM)
        never = th.zeros(n_segments, 1, dtype=th.bool)
        return Segments(th.cat([start, following], dim=1), noise(1, ACTION_DIM), noise(1), never, ~never)

    def every_transition(self) -> Segments:
        return self.segments(5_000)


@pytest.mark.parametrize("sampler, n_steps", [("ddpm", 128), ("flow", 16)])
def test_many_steps_do_not_shrink_the_variance(sampler: str, n_steps: int) -> None:
    """The variance of imagined states is compared with what the sampler makes of the exact denoiser."""
    settings = {"horizon": 1, "sampler": sampler, "n_denoising_steps": n_steps, "learning_rate": 3e-3}
    model, source = make_model(network_kwargs={"width": 32}, **settings), WhiteNoise()
    observe(model, source.every_transition())
    model.fit(source, 1_000, batch_size=128, generator=seeded())
    start, policy = th.zeros(2_000, OBSERVATION_DIM), lambda states, _: states[..., :ACTION_DIM]
    imagined = model.imagine(start, policy, generator=seeded())
    model.ema_networks["denoiser"] = GaussianDenoiser(model.schedule, WhiteNoise.variance)
    exact = model.imagine(start, policy, generator=seeded())
    ratio = imagined.observations[:, 1].var(0).mean() / exact.observations[:, 1].var(0).mean()
    assert 0.85 < ratio < 1.25


def test_gradients_of_the_world_model_are_clipped() -> None:
    model, segments = make_model(), Recording().segments(64)
    # Nothing is standardised yet: such rewards are far from what networks put out
    model.fit(Constant(dataclasses.replace(segments, rewards=segments.rewards * 1e3)), 1, 64, generator=seeded())
    gradients = [parameter.grad for parameter in model.networks["denoiser"].parameters() if parameter.grad is not None]
    assert th.stack([gradient.norm() for gradient in gradients]).norm().item() == pytest.approx(1, rel=1e-4)


def test_each_batch_has_a_quarter_more_terminal_transitions() -> None:
    source, asked = Recording(by_chance), []

    def terminal_transitions(n_transitions: int) -> Segments:
        asked.append(n_transitions)
        return Recording.terminal_transitions(source, n_transitions)

    source.terminal_transitions = terminal_transitions  # type: ignore[method-assign]
    for batch_size in (64, 1):
        make_model().fit(source, 1, batch_size, generator=seeded())
    assert asked == [16, 1]


@pytest.mark.parametrize(
    ("network", "horizon", "length"), [("recurrent", 8, 4), ("recurrent", 6, 2), ("recurrent", 5, 1), ("mlp", 6, 6)]
)
def test_recurrent_denoiser_is_reset_to_the_true_state_every_few_steps(
    network: str, horizon: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = make_model(network=network, horizon=horizon), Recording(by_chance)
    observe(model, source.every_transition())
    segments = source.cut(source.starts[:10], horizon)
    seen: list[th.Tensor] = []
    forward = model.networks["denoiser"].forward
    monkeypatch.setattr(model.networks["denoiser"], "forward", lambda *inputs: seen.extend(inputs) or forward(*inputs))
    model.denoising_loss(segments, seeded())
    noisy, times, starts, actions = seen
    n_walks = horizon // length
    assert noisy.shape[:2] == actions.shape[:2] == (10 * n_walks, length)
    true_states = model.observation_normalizer(segments.observations[:, :-1])[:, ::length]
    assert th.allclose(starts.view(10, n_walks, -1), true_states)
    assert th.allclose(actions.view(10, horizon, -1), model.action_normalizer(segments.actions))
    # Those of a segment have the same level of noise
    assert th.equal(times.view(10, n_walks), times.view(10, n_walks)[:, :1].expand(-1, n_walks))


def test_different_seeds_give_different_weights() -> None:
    first, second, unseeded, other_unseeded = (
        make_model(seed=seed).networks["denoiser"].input.weight for seed in (0, 1, None, None)
    )
    assert not th.equal(first, second)
    assert not th.equal(unseeded, other_unseeded)


def test_restored_model_goes_on_learning_as_if_never_interrupted() -> None:
    model = fitted(Recording(by_chance))
    twin = make_model(seed=99)
    twin.load_state_dict(model.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(model.optimizer.state_dict()))
    for m in (model, twin):
        source = Recording(by_chance, seed=3)
        observe(m, source.every_transition())
        m.fit(source, 3, 16, generator=seeded(3))
    assert all(th.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_imagination_uses_the_running_mean_of_the_weights() -> None:
    model = fitted(Recording(by_chance))
    start = th.zeros(5, OBSERVATION_DIM)
    before = model.imagine(start, linear_policy, generator=seeded())
    randomised(model.networks)
    assert_equal(model.imagine(start, linear_policy, generator=seeded()), before)
    randomised(model.ema_networks)
    assert not th.equal(model.imagine(start, linear_policy, generator=seeded()).observations, before.observations)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_running_mean_follows_the_weights(ema_decay: float) -> None:
    source, model = Recording(by_chance), make_model(ema_decay=ema_decay)
    observe(model, source.every_transition())
    expected = [parameter.clone() for parameter in model.ema_networks.parameters()]

    def follow() -> None:
        n_updates = int(model.n_updates)
        decay = min(ema_decay, n_updates / (n_updates + 10))
        for mean, weight in zip(expected, model.networks.parameters(), strict=True):
            mean.mul_(decay).add_((1 - decay) * weight.detach())

    model.fit(source, 20, 16, generator=seeded(), on_update=follow)
    for mean, ours, weight in zip(expected, model.ema_networks.parameters(), model.networks.parameters(), strict=True):
        assert th.allclose(mean, ours, atol=1e-6)
        assert th.equal(ours, weight) == (ema_decay == 0)


class WithDropout(ResidualMLPDenoiser):
    """Has layers that behave differently in training."""

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int = 16, depth: int = 2):
        super().__init__(observation_dim, action_dim, horizon, width, depth)
        self.blocks.append(nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5)))


def test_layers_that_behave_differently_in_training_do_so() -> None:
    def train_and_imagine() -> Segments[th.Tensor]:
        model = fitted(Recording(), 20, network=WithDropout)
        ours, means = (networks["denoiser"].blocks[-1][1] for networks in (model.networks, model.ema_networks))
        assert ours.num_batches_tracked == 20
        assert th.equal(ours.running_mean, means.running_mean) and ours.running_mean.any()
        alone = linear_segments(1, seeded())
        return model.predict(alone.observations[:, 0], alone.actions, seeded())

    th.manual_seed(7)
    before = th.get_rng_state()
    first = train_and_imagine()
    assert th.equal(th.get_rng_state(), before)
    th.manual_seed(8)
    assert_equal(first, train_and_imagine())


def test_fits_without_a_generator_draw_different_noise() -> None:
    model, levels = make_model(), []
    source = Recording()
    observe(model, source.every_transition())
    add_noise = model.schedule.add_noise
    model.schedule.add_noise = lambda data, noise, time: levels.append(time) or add_noise(data, noise, time)
    for _ in range(2):
        model.fit(source, 1, 8)
    assert not th.equal(*levels)


@pytest.mark.parametrize("sampler", ["flow", "ddpm"])
def test_noise_levels_may_be_uniform_in_time(sampler: str) -> None:
    """From the lowest level at which the sampler calls the denoiser to the highest."""
    shares = {}
    for density in ("sampler", "uniform"):
        model, levels = make_model(n_denoising_steps=10, noise_density=density, sampler=sampler), []
        source = Recording()
        observe(model, source.every_transition())
        # Schedules are shared
        model.schedule = type(model.schedule)()
        add_noise = model.schedule.add_noise
        model.schedule.add_noise = lambda data, noise, time, add_noise=add_noise, levels=levels: (
            levels.append(time) or add_noise(data, noise, time)
        )
        model.denoising_loss(source.segments(4000), seeded())
        (times,) = levels
        assert times.min() >= 0.1 - 1e-6 and times.max() <= 1
        shares[density] = (times < 0.55).float().mean().item()
    assert shares["uniform"] == pytest.approx(0.5, abs=0.03)
    assert shares["sampler"] > 0.55

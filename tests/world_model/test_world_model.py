"""Imagination with the world model, on a system whose laws are known."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    GAMMA,
    HORIZON,
    OBSERVATION_DIM,
    Recording,
    assert_equal,
    by_chance,
    each_guide,
    each_network,
    each_sampler,
    exact_model,
    fitted,
    linear_critic,
    linear_policy,
    make_model,
    objective_of,
    observe,
    prediction_errors,
    roll_out,
    seeded,
)

from sb3_agd.experience.segment_errors import segment_errors
from sb3_agd.imagination import Critic, Guide, SigmoidAdvantageGuide
from sb3_agd.world_model import DiffusionWorldModel, Segments


@each_sampler
def test_imagination_with_the_exact_denoiser_follows_the_true_distribution(sampler: str) -> None:
    n_segments, n_steps = 4000, 100
    model = exact_model(sampler=sampler, n_denoising_steps=n_steps)
    start = th.tensor([0.7, -1.3]).expand(n_segments, -1)
    actions = th.tensor([[0.5], [-1.0], [2.0]]).expand(n_segments, -1, -1)
    imagined = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded())
    samples = th.cat([imagined.observations[:, 1:], imagined.rewards[..., None]], dim=-1).double()

    denoiser = model.ema_networks["denoiser"]
    mean = roll_out(start[:1], actions[:1], th.zeros(1, HORIZON, OBSERVATION_DIM + 1))[0]
    scale = denoiser.scale.repeat(HORIZON)
    covariance = scale[:, None] * denoiser.covariance * scale
    variances = covariance.diagonal()
    mean_error = (samples.mean(0) - mean).abs().flatten()
    covariance_error = (th.cov(samples.flatten(1).T) - covariance).abs()
    # Four standard errors, and a bias of first order in the length of a step
    assert (mean_error < 4 * (variances / n_segments).sqrt() + 1e-3).all()
    spread = variances[:, None] * variances
    assert (covariance_error < 4 * ((spread + covariance**2) / n_segments).sqrt() + 8 / n_steps * spread.sqrt()).all()


@each_guide
def test_start_state_is_returned_untouched_bit_for_bit(guide: Guide) -> None:
    model = exact_model()
    start = th.randn(20, OBSERVATION_DIM, generator=seeded()) * th.tensor([1e-3, 1e4]) + 1 / 3
    kept = start.clone()
    imagined = model.imagine(start, linear_policy, objective_of(guide, linear_critic()), 100.0, seeded(1))
    assert th.equal(imagined.observations[:, 0], kept)
    assert th.equal(start, kept)


def test_actions_are_those_of_the_policy_at_the_imagined_states() -> None:
    model = exact_model()
    start = th.randn(20, OBSERVATION_DIM, generator=seeded())
    for objective in (None, objective_of(SigmoidAdvantageGuide(), linear_critic())):
        imagined = model.imagine(start, linear_policy, objective, 1.0, seeded(1))
        assert th.equal(imagined.actions, linear_policy(imagined.observations[:, :-1]))


@pytest.mark.parametrize("n_denoising_steps", [1, 2, 4])
def test_recurrent_denoiser_makes_states_and_actions_consistent(n_denoising_steps: int) -> None:
    source = Recording()
    model = fitted(source, n_denoising_steps=n_denoising_steps)
    start = source.every_transition().observations[:200, 0]
    imagined = model.imagine(start, linear_policy, generator=seeded(1))
    # Given its actions, the same noise leads to the same states again: they fit together
    again = model.imagine(start, lambda _, steps: imagined.actions[:, steps], generator=seeded(1))
    th.testing.assert_close(again.observations, imagined.observations, atol=0.02 * imagined.observations.std().item(), rtol=0)


@each_sampler
@each_network
def test_candidates_differ_by_their_actions_only(sampler: str, network: str) -> None:
    model = fitted(Recording(by_chance), sampler=sampler, network=network)
    start = th.randn(50, OBSERVATION_DIM, generator=seeded()).repeat_interleave(4, dim=0)
    actions = th.randn(50, HORIZON, ACTION_DIM, generator=seeded(2)).repeat_interleave(4, dim=0)
    actions[0] += 1.0
    imagined = model.imagine(start, lambda _, steps: actions[:, steps], generator=seeded(1), n_candidates=4)
    assert imagined.terminations.any()
    for field in dataclasses.fields(imagined):
        groups = getattr(imagined, field.name).unflatten(0, (50, 4))
        assert th.equal(groups[1:], groups[1:, :1].expand_as(groups[1:]))
    assert not th.equal(imagined.observations[0], imagined.observations[1])
    assert th.equal(imagined.observations[1], imagined.observations[2])


@each_sampler
def test_recurrent_denoiser_asks_the_policy_at_the_states_that_are_returned(sampler: str) -> None:
    asked: dict[int, th.Tensor] = {}
    n_calls = 0

    def policy(states: th.Tensor, steps: slice) -> th.Tensor:
        nonlocal n_calls
        n_calls += 1
        asked[steps.start] = states
        return linear_policy(states)

    source = Recording()
    start = source.every_transition().observations[:200, 0]
    imagined = fitted(source, sampler=sampler, n_denoising_steps=3).imagine(start, policy, generator=seeded(1))
    # Once for each action
    assert n_calls == HORIZON
    for step in range(HORIZON):
        assert th.equal(asked[step].squeeze(1), imagined.observations[:, step])
        assert th.equal(imagined.actions[:, step], linear_policy(asked[step]).squeeze(1))


@pytest.mark.parametrize("horizon", [1, 2, 5])
@each_network
@each_sampler
def test_imagined_segments_have_the_documented_shapes(sampler: str, network: str, horizon: int) -> None:
    model = make_model(sampler=sampler, network=network, horizon=horizon, n_denoising_steps=3)
    imagined = model.imagine(th.zeros(7, OBSERVATION_DIM), linear_policy, generator=seeded())
    assert len(imagined) == 7
    assert imagined.observations.shape == (7, horizon + 1, OBSERVATION_DIM)
    assert imagined.actions.shape == (7, horizon, ACTION_DIM)
    assert imagined.rewards.shape == imagined.terminations.shape == imagined.mask.shape == (7, horizon)
    assert imagined.terminations.dtype == imagined.mask.dtype == th.bool


def test_masked_steps_do_not_count_as_errors() -> None:
    model, real = fitted(Recording(by_chance)), Recording(by_chance, seed=5).segments(50)
    imagined = model.predict(real.observations[:, 0], real.actions, seeded(6))
    reached = th.cat([th.ones(len(real), 1, dtype=th.bool), real.mask], dim=1)[..., None]
    assert not real.mask.all()
    changed = dataclasses.replace(
        real,
        observations=th.where(reached, real.observations, 1e3),
        rewards=th.where(real.mask, real.rewards, -1e3),
    )
    for name, error in segment_errors(model, imagined, real).items():
        assert th.allclose(segment_errors(model, imagined, changed)[name], error, equal_nan=True), name


def test_mask_of_imagined_segments_is_true_up_to_and_including_the_first_termination() -> None:
    draws = np.random.default_rng(0)
    model = make_model(horizon=5, termination_fn=lambda observations, *_: draws.random(len(observations)) < 0.3)
    imagined = model.imagine(th.zeros(200, OBSERVATION_DIM), linear_policy, generator=seeded())
    for terminations, mask in zip(imagined.terminations.tolist(), imagined.mask.tolist(), strict=True):
        n_valid = terminations.index(True) + 1 if True in terminations else 5
        assert mask == [True] * n_valid + [False] * (5 - n_valid)


def test_setting_of_the_paper_works() -> None:
    model = make_model(
        observation_dim=11,
        action_dim=3,
        horizon=10,
        sampler="ddpm",
        n_denoising_steps=128,
        network="mlp",
        network_kwargs={"width": 1024, "depth": 6},
    )
    segments = Segments(
        observations=th.randn(8, 11, 11, generator=seeded()),
        actions=th.randn(8, 10, 3, generator=seeded()),
        rewards=th.randn(8, 10, generator=seeded()),
        terminations=th.zeros(8, 10, dtype=th.bool),
        mask=th.ones(8, 10, dtype=th.bool),
    )
    observe(model, segments)

    class Source:
        termination_rate = 1 / 80

        def segments(self, n_segments: int) -> Segments:
            return segments

        def terminal_transitions(self, n_transitions: int) -> Segments:
            return Segments(
                observations=segments.observations[:1, -2:],
                actions=segments.actions[:1, -1:],
                rewards=segments.rewards[:1, -1:],
                terminations=segments.terminations[:1, -1:],
                mask=segments.mask[:1, -1:],
            )

    segments.terminations[0, -1] = True
    losses = model.fit(Source(), 1, 8, generator=seeded())
    assert np.isfinite(list(losses.values())).all()
    critic = Critic(lambda observations: observations.sum(-1), lambda rewards: rewards, GAMMA)
    imagined = model.imagine(
        segments.observations[:3, 0],
        lambda states, _: states[..., :3],
        objective_of(SigmoidAdvantageGuide(), critic),
        3.0,
        seeded(),
    )
    assert imagined.observations.shape == (3, 11, 11)
    assert imagined.observations.isfinite().all()
    assert imagined.rewards.isfinite().all()


@each_network
def test_same_seed_gives_the_same_weights_and_the_same_imagination(network: str) -> None:
    start = th.randn(20, OBSERVATION_DIM, generator=seeded())
    models, imagined = [], []
    for _ in range(2):
        th.manual_seed(np.random.randint(1000))
        model = fitted(Recording(by_chance), network=network)
        models.append(model.state_dict())
        imagined.append(
            model.imagine(start, linear_policy, objective_of(SigmoidAdvantageGuide(), linear_critic()), 1.0, seeded(1))
        )
    assert models[0].keys() == models[1].keys()
    assert all(th.equal(models[0][name], models[1][name]) for name in models[0])
    assert_equal(*imagined)


@pytest.mark.parametrize("sampler", ["flow", "ddpm"])
@pytest.mark.parametrize("seed", [0, None])
def test_global_random_states_are_left_untouched(seed: int | None, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    th.manual_seed(123)
    np.random.seed(123)
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()
    # Those of GPUs as well
    monkeypatch.setattr(th.cuda, "manual_seed_all", lambda _: pytest.fail("GPUs were seeded"))
    model = fitted(Recording(by_chance), seed=seed, sampler=sampler)
    start = th.zeros(5, OBSERVATION_DIM)
    model.imagine(start, linear_policy, objective_of(SigmoidAdvantageGuide(), linear_critic()), 1.0, seeded())
    prediction_errors(model, Recording(seed=5).segments(5), seeded())
    assert th.equal(th.get_rng_state(), torch_state)
    for before, after in zip(numpy_state, np.random.get_state(), strict=True):
        assert np.array_equal(before, after)


@each_network
def test_state_dict_round_trip_gives_the_same_imagination(network: str) -> None:
    model = fitted(Recording(by_chance), network=network)
    twin = make_model(network=network, seed=99)
    twin.load_state_dict(model.state_dict())
    start = th.randn(200, OBSERVATION_DIM, generator=seeded())
    guide, critic = SigmoidAdvantageGuide(), linear_critic()
    imagined = [m.imagine(start, linear_policy, objective_of(guide, critic), 1.0, seeded(1)) for m in (model, twin)]
    assert imagined[0].terminations.any()
    assert_equal(*imagined)


def test_world_model_works_without_the_agent_and_its_libraries() -> None:
    modules = sorted(Path(inspect.getfile(DiffusionWorldModel)).parent.glob("*.py"))
    imports = [line.strip() for module in modules for line in module.read_text().splitlines() if "import" in line.split()]
    assert any(line.startswith("import torch") for line in imports)
    for foreign in ("stable_baselines3", "gymnasium", "sb3_contrib", "agdppo"):
        assert not any(foreign in line for line in imports)


def test_arrays_of_any_layout_are_imagined_from() -> None:
    model = fitted(Recording())
    array = np.random.default_rng(0).normal(size=(6, OBSERVATION_DIM)).astype(np.float32)
    expected = model.imagine(th.from_numpy(array), linear_policy, generator=seeded())
    read_only = array.copy()
    read_only.setflags(write=False)
    reversed_twice = array[::-1].copy()[::-1]
    for layout in (array, array.astype(np.float64), read_only, reversed_twice, np.asfortranarray(array)):
        assert_equal(model.imagine(layout, linear_policy, generator=seeded()), expected)
    actions = np.zeros((6, HORIZON, ACTION_DIM))
    expected = model.predict(th.from_numpy(array), th.from_numpy(actions).float(), seeded())
    assert_equal(model.predict(reversed_twice, actions[::-1], seeded()), expected)


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_autoregressive_networks_imagine_segments_of_any_length(horizon: int) -> None:
    source = Recording()
    model = fitted(source, 300)
    start = source.every_transition().observations[:100, 0]
    imagined = model.imagine(start, linear_policy, generator=seeded(), horizon=horizon)
    assert imagined.observations.shape == (100, horizon + 1, OBSERVATION_DIM)
    assert imagined.rewards.shape == imagined.mask.shape == (100, horizon)
    assert th.equal(imagined.actions, linear_policy(imagined.observations[:, :-1]))
    actions = th.zeros(100, horizon, ACTION_DIM)
    predicted = model.predict(start, actions, seeded())
    true_states = roll_out(start, actions, th.zeros(100, horizon, OBSERVATION_DIM + 1))[..., :-1]
    assert (predicted.observations[:, 1:] - true_states).square().mean().sqrt() < 0.3


def test_networks_of_a_fixed_horizon_refuse_another_one_by_name() -> None:
    model = make_model(network="mlp")
    with pytest.raises(ValueError, match="`horizon` must be 3 with the network ResidualMLPDenoiser, not 4"):
        model.imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, horizon=4)
    with pytest.raises(ValueError, match="`horizon` must be an integer of at least 1"):
        make_model().imagine(th.zeros(2, OBSERVATION_DIM), linear_policy, horizon=0)


@pytest.mark.parametrize("shape", [(OBSERVATION_DIM,), (4, OBSERVATION_DIM + 1), (2, 3, OBSERVATION_DIM)])
def test_start_states_of_a_wrong_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`observations` must have the shape \(B, 2\), not"):
        make_model().imagine(np.zeros(shape), linear_policy)


@pytest.mark.parametrize("shape", [(4, HORIZON), (3, HORIZON, ACTION_DIM), (4, HORIZON, ACTION_DIM + 1)])
def test_actions_of_a_wrong_shape_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`actions` must have the shape \(4, horizon, 1\), not"):
        make_model().predict(np.zeros((4, OBSERVATION_DIM)), np.zeros(shape))


class Walk:
    """
    Segments of one number that changes by chance, and starts around 0.

    :param change: The next state from a state and a generator
    """

    termination_rate = 0.0

    def __init__(self, change: Callable[[th.Tensor, th.Generator], th.Tensor]):
        self.change = change
        self.generator = seeded()

    def segments(self, n_segments: int) -> Segments:
        states = [3 * th.randn(n_segments, 1, generator=self.generator)]
        for _ in range(8):
            states.append(self.change(states[-1], self.generator))
        visited, never = th.stack(states, dim=1), th.zeros(n_segments, 8, dtype=th.bool)
        return Segments(visited, th.zeros(n_segments, 8, 1), visited[:, 1:, 0], never, ~never)

    def every_transition(self) -> Segments:
        return self.segments(3_000)


def imagined_walk(change: Callable[[th.Tensor, th.Generator], th.Tensor], gradient_steps: int, seed: int = 0) -> th.Tensor:
    """States imagined with the setting that the guide for users recommends in stochastic tasks, shape (B, H + 1)."""
    source = Walk(change)
    model = make_model(
        observation_dim=1,
        horizon=8,
        sampler="heun",
        n_denoising_steps=16,
        open_loop_length=1,
        learning_rate=3e-3,
        ema_decay=0.99,
        # That of the package
        network_kwargs={"width": 128},
        seed=seed,
    )
    observe(model, source.every_transition())
    model.fit(source, gradient_steps, 256, 3e-3, generator=seeded(seed))
    model.fit(source, gradient_steps // 2, 256, 3e-4, generator=seeded(seed))
    return model.predict(th.zeros(10_000, 1), th.zeros(10_000, 8, 1), seeded(1)).observations[..., 0]


def test_random_walk_is_imagined_with_its_variance_and_independent_increments() -> None:
    states = imagined_walk(lambda state, generator: state + th.randn(state.shape, generator=generator), 700)
    increments = states.diff(dim=1)
    increments = increments - increments.mean(0)
    variance = increments.square().mean().item()
    assert variance == pytest.approx(1, abs=0.1)
    assert states[:, -1].var().item() == pytest.approx(8, rel=0.1)
    assert abs((increments[:, 1:] * increments[:, :-1]).mean().item()) / variance < 0.05


def test_two_outcomes_are_imagined_with_their_probabilities_and_nothing_in_between() -> None:
    def jump(state: th.Tensor, generator: th.Generator) -> th.Tensor:
        sign = 2.0 * (th.rand(state.shape, generator=generator) < 0.1) - 1
        return sign + 0.05 * th.randn(state.shape, generator=generator)

    states = imagined_walk(jump, 700)[:, 1:]
    assert (states > 0).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert (states.abs() < 0.7).float().mean() < 0.03

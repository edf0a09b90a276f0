"""Guides on toy critics whose advantages and gradients are known."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch as th

from sb3_agd.imagination import Critic, ExponentialAdvantageGuide, Guide, RewardGuide, SigmoidAdvantageGuide
from sb3_agd.imagination.guides import GUIDES
from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination

GAMMA = 0.9
WEIGHTS = th.tensor([0.7, -1.2, 0.4], dtype=th.float64)
HORIZON = 4
each_guide = pytest.mark.parametrize("guide", [guide() for guide in GUIDES.values()], ids=list(GUIDES))
each_advantage_guide = pytest.mark.parametrize(
    "guide", [SigmoidAdvantageGuide(), ExponentialAdvantageGuide()], ids=["sag", "eag"]
)


def linear_values(observations: th.Tensor) -> th.Tensor:
    return observations @ WEIGHTS + 0.3


def quadratic_values(observations: th.Tensor) -> th.Tensor:
    return 2 - ((observations - WEIGHTS) ** 2).sum(-1)


def half(rewards: th.Tensor) -> th.Tensor:
    return 0.5 * rewards


each_value_function = pytest.mark.parametrize("values", [linear_values, quadratic_values], ids=["linear", "quadratic"])


def make_segments(n_segments: int = 6, seed: int = 0) -> Segments[th.Tensor]:
    """
    Random segments. The second ends in a termination at its third transition, the third at its first one, the fourth
    at its last one, and the data of the fifth ends after two transitions without a termination.
    """
    generator = th.Generator().manual_seed(seed)
    terminations = th.zeros(n_segments, HORIZON, dtype=th.bool)
    terminations[1, 2] = terminations[2, 0] = terminations[3, -1] = True
    mask = mask_after_termination(terminations)
    mask[4, 2:] = False
    return Segments(
        observations=th.randn(n_segments, HORIZON + 1, 3, generator=generator, dtype=th.float64),
        actions=th.randn(n_segments, HORIZON, 2, generator=generator, dtype=th.float64),
        rewards=th.randn(n_segments, HORIZON, generator=generator, dtype=th.float64),
        terminations=terminations,
        mask=mask,
    )


def one_transition(advantage: float) -> Segments[th.Tensor]:
    """A single transition whose advantage under :func:`linear_values` and unscaled rewards is the given number."""
    observations = th.randn(1, 2, 3, generator=th.Generator().manual_seed(0), dtype=th.float64)
    values = linear_values(observations)
    return Segments(
        observations=observations,
        actions=th.zeros(1, 1, 2, dtype=th.float64),
        rewards=(advantage - GAMMA * values[:, 1:] + values[:, :-1]),
        terminations=th.zeros(1, 1, dtype=th.bool),
        mask=th.ones(1, 1, dtype=th.bool),
    )


def advantages_by_hand(segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
    advantages = th.zeros(len(segments), HORIZON, dtype=th.float64)
    for row in range(len(segments)):
        for step in range(HORIZON):
            if not segments.mask[row, step]:
                break
            here, there = segments.observations[row, step], segments.observations[row, step + 1]
            target = critic.rewards(segments.rewards[row, step])
            if not segments.terminations[row, step]:
                target = target + critic.gamma * critic.values(there[None])[0]
            advantages[row, step] = (target - critic.values(here[None])[0]) / critic.advantage_std
    return advantages


def gradients(guide: Guide, segments: Segments[th.Tensor], critic: Critic) -> tuple[th.Tensor, th.Tensor]:
    """Gradients of the summed objective in the observations and in the rewards."""
    observations = segments.observations.clone().requires_grad_()
    rewards = segments.rewards.clone().requires_grad_()
    objective = guide.objective(dataclasses.replace(segments, observations=observations, rewards=rewards), critic)
    found = th.autograd.grad(objective.sum(), (observations, rewards), allow_unused=True)
    zeros = (th.zeros_like(observations), th.zeros_like(rewards))
    return tuple(z if g is None else g for g, z in zip(found, zeros, strict=True))  # type: ignore[return-value]


@each_value_function
def test_advantages_equal_a_hand_written_loop(values: Callable[[th.Tensor], th.Tensor]) -> None:
    critic = Critic(values, half, GAMMA, advantage_std=1.7)
    segments = make_segments()
    assert th.allclose(critic.advantages(segments), advantages_by_hand(segments, critic))


def test_advantage_does_not_bootstrap_on_a_terminal_state() -> None:
    critic = Critic(linear_values, half, GAMMA)
    segments = make_segments()
    expected = half(segments.rewards[2, 0]) - linear_values(segments.observations[2, 0])
    assert critic.advantages(segments)[2, 0] == pytest.approx(expected.item())


def test_advantage_bootstraps_where_the_data_ends_without_a_termination() -> None:
    critic = Critic(linear_values, half, GAMMA)
    segments = make_segments()
    here, there = linear_values(segments.observations[4, 1:3])
    expected = half(segments.rewards[4, 1]) + GAMMA * there - here
    assert critic.advantages(segments)[4, 1] == pytest.approx(expected.item())


def test_advantage_std_divides_the_advantages() -> None:
    segments = make_segments()
    critics = [Critic(quadratic_values, half, GAMMA, advantage_std=std) for std in (1.0, 4.0)]
    plain, scaled = (critic.advantages(segments) for critic in critics)
    assert th.allclose(scaled, plain / 4)


@each_guide
def test_objective_does_not_depend_on_the_unit_of_rewards_once_standardised(guide: Guide) -> None:
    segments = make_segments()
    plain = Critic(quadratic_values, half, GAMMA, advantage_std=1.5)
    thousandfold = Critic(
        lambda observations: 1000 * quadratic_values(observations),
        lambda rewards: 1000 * half(rewards),
        GAMMA,
        advantage_std=1500,
    )
    assert th.allclose(guide.objective(segments, plain), guide.objective(segments, thousandfold))


@each_guide
def test_objective_is_one_number_per_segment(guide: Guide) -> None:
    assert guide.objective(make_segments(), Critic(linear_values, half, GAMMA)).shape == (6,)


def test_objectives_are_the_logarithms_of_the_weights_of_the_paper() -> None:
    critic = Critic(quadratic_values, half, GAMMA, advantage_std=1.7)
    segments = make_segments()
    advantages = advantages_by_hand(segments, critic)
    exponential = ExponentialAdvantageGuide().objective(segments, critic)
    sigmoid = SigmoidAdvantageGuide().objective(segments, critic)
    reward = RewardGuide().objective(segments, critic)
    assert th.allclose(exponential.exp(), advantages.sum(1).exp())
    # After a termination, advantages are 0
    assert th.allclose(sigmoid.exp(), advantages.sigmoid().prod(1))
    assert th.allclose(reward, (0.5 * segments.rewards * segments.mask).sum(1) / 1.7)


@each_advantage_guide
def test_a_termination_as_good_as_expected_does_not_change_the_objective(guide: Guide) -> None:
    """Nor do the masked steps after it: otherwise segments would be selected for being short."""
    value = linear_values(th.zeros(3, dtype=th.float64)).item()
    rewards = th.full((2, HORIZON), (1 - GAMMA) * value, dtype=th.float64)
    terminations = th.zeros(2, HORIZON, dtype=th.bool)
    rewards[1, 1], terminations[1, 1] = value, True
    segments = Segments(
        observations=th.zeros(2, HORIZON + 1, 3, dtype=th.float64),
        actions=th.zeros(2, HORIZON, 2, dtype=th.float64),
        rewards=rewards,
        terminations=terminations,
        mask=mask_after_termination(terminations),
    )
    whole, short = guide.objective(segments, Critic(linear_values, lambda rewards: rewards, GAMMA)).tolist()
    assert short == pytest.approx(whole)


@each_value_function
@each_advantage_guide
def test_gradient_of_an_advantage_guide_agrees_with_finite_differences(
    guide: Guide, values: Callable[[th.Tensor], th.Tensor]
) -> None:
    critic = Critic(values, half, GAMMA, advantage_std=1.7)
    segments = make_segments()

    def objective(observations: th.Tensor) -> th.Tensor:
        return guide.objective(dataclasses.replace(segments, observations=observations), critic)

    observations = segments.observations.clone().requires_grad_()
    assert th.autograd.gradcheck(objective, (observations,))


def test_gradient_of_the_reward_guide_agrees_with_finite_differences() -> None:
    critic = Critic(linear_values, lambda rewards: rewards.tanh(), GAMMA, advantage_std=1.7)
    segments = make_segments()

    def objective(rewards: th.Tensor) -> th.Tensor:
        return RewardGuide().objective(dataclasses.replace(segments, rewards=rewards), critic)

    rewards = segments.rewards.clone().requires_grad_()
    assert th.autograd.gradcheck(objective, (rewards,))


@each_advantage_guide
def test_advantage_guides_leave_the_rewards_alone(guide: Guide) -> None:
    observation_gradient, reward_gradient = gradients(guide, make_segments(), Critic(quadratic_values, half, GAMMA))
    assert (reward_gradient == 0).all()
    assert (observation_gradient != 0).any()


def test_reward_guide_leaves_the_observations_alone() -> None:
    critic = Critic(quadratic_values, half, GAMMA)
    observation_gradient, reward_gradient = gradients(RewardGuide(), make_segments(), critic)
    assert (observation_gradient == 0).all()
    assert (reward_gradient != 0).any()


@pytest.mark.parametrize("advantage", [-20.0, -2.0, 0.0, 1.0, 3.0, 20.0])
def test_gradient_of_sigmoid_guidance_vanishes_at_high_advantages(advantage: float) -> None:
    critic, segments = Critic(linear_values, lambda rewards: rewards, GAMMA), one_transition(advantage)
    exponential, _ = gradients(ExponentialAdvantageGuide(), segments, critic)
    sigmoid, _ = gradients(SigmoidAdvantageGuide(), segments, critic)
    assert th.allclose(exponential[0, 1], GAMMA * WEIGHTS)
    assert th.allclose(sigmoid, exponential / (1 + math.exp(advantage)), rtol=1e-6, atol=0)


def test_gradient_of_sigmoid_guidance_is_finite_at_extreme_advantages() -> None:
    critic = Critic(linear_values, lambda rewards: rewards, GAMMA)
    for advantage, share in ((-1e6, 1.0), (1e6, 0.0)):
        gradient, _ = gradients(SigmoidAdvantageGuide(), one_transition(advantage), critic)
        assert th.allclose(gradient[0, 1], share * GAMMA * WEIGHTS)


@each_guide
def test_masked_steps_do_not_change_the_objective(guide: Guide) -> None:
    critic = Critic(quadratic_values, half, GAMMA)
    segments, others = make_segments(seed=0), make_segments(seed=1)
    # The state after the last transition still belongs to the segment
    reached = th.cat([th.ones(len(segments), 1, dtype=th.bool), segments.mask], dim=1)
    changed = dataclasses.replace(
        segments,
        observations=th.where(reached[..., None], segments.observations, others.observations),
        rewards=th.where(segments.mask, segments.rewards, others.rewards),
        terminations=segments.terminations | ~segments.mask,
    )
    assert th.equal(guide.objective(segments, critic), guide.objective(changed, critic))
    observation_gradient, reward_gradient = gradients(guide, segments, critic)
    assert (observation_gradient[~reached] == 0).all()
    assert (reward_gradient[~segments.mask] == 0).all()


@each_guide
def test_terminal_states_get_no_gradient(guide: Guide) -> None:
    segments = make_segments()
    observation_gradient, _ = gradients(guide, segments, Critic(quadratic_values, half, GAMMA))
    for row, step in segments.terminations.nonzero().tolist():
        assert (observation_gradient[row, step + 1] == 0).all()


@each_guide
def test_segments_do_not_influence_each_other(guide: Guide) -> None:
    critic = Critic(quadratic_values, half, GAMMA)
    segments = make_segments()
    together = guide.objective(segments, critic)
    for row in range(len(segments)):
        single = segments.map(lambda array, row=row: array[row : row + 1])
        assert th.allclose(guide.objective(single, critic), together[row])


def test_guide_without_an_objective_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Guide()  # type: ignore[abstract]


def test_a_guide_without_arguments_guides_as_its_name_does() -> None:
    for guide in (guide() for guide in GUIDES.values()):
        assert guide.weight == "calibrated"
        assert guide.last_state and guide.critic_trust and guide.advantage_scaling


def test_a_users_guide_with_a_constructor_of_its_own_has_the_defaults() -> None:
    class Own(Guide):
        def __init__(self, bonus: float):
            self.bonus = bonus

        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return segments.rewards.sum(1) + self.bonus

    assert Own(1.0).weight == "calibrated" and Own(1.0).critic_trust
    segments = make_segments()
    assert th.equal(Own(1.0).checked_objective(segments, Critic(linear_values, half, GAMMA)), segments.rewards.sum(1) + 1)


@pytest.mark.parametrize(
    "name, value",
    [("weight", "sigma2"), ("weight", None), ("last_state", 1), ("critic_trust", "no"), ("advantage_scaling", None)],
)
def test_a_wrong_switch_of_a_guide_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        SigmoidAdvantageGuide(**{name: value})  # type: ignore[arg-type]


@each_advantage_guide
def test_without_scaling_advantages_are_in_the_units_of_the_critic(guide: Guide) -> None:
    unscaled = type(guide)(advantage_scaling=False)
    segments, critics = make_segments(), [Critic(quadratic_values, half, GAMMA, std) for std in (1.0, 4.0)]
    plain, by_std = (guide.checked_objective(segments, critic) for critic in critics)
    assert not th.allclose(plain, by_std)
    for critic in critics:
        assert th.allclose(unscaled.checked_objective(segments, critic), plain)

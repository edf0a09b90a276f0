"""PolyGRAD's actions: denoised with the states, by the score of the policy."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_agd import AGDPPO
from sb3_agd.imagination import NO_GUIDANCE, Guidance, SigmoidAdvantageGuide
from sb3_agd.replication import PolicyScoreActions
from sb3_agd.replication.policy_score_actions import MAX_DEVIATIONS, ScoreStepPolicy, standardised_deviation

MLP = {"network": "mlp", "network_kwargs": {"width": 16, "depth": 1}}


def make_model(actions: PolicyScoreActions | None = None, **changes: Any) -> AGDPPO:
    settings = SMALL | {"world_model_kwargs": MLP, "n_denoising_steps": 8, "policy_kwargs": {"log_std_init": -1.0}}
    return AGDPPO("MlpPolicy", "Pendulum-v1", action_sampler=actions or PolicyScoreActions(), **settings | changes)


def test_one_step_moves_actions_along_the_score_of_the_policy() -> None:
    """Between two steps, ``action + step * std^2 * grad log pi(action | state)`` plus the noise of the step."""
    model = make_model(n_denoising_steps=4, sampler="ddpm").learn(64)
    imagination, step = model.imagination, 0.4
    world_model = imagination.world_model
    policy = ScoreStepPolicy(imagination.agent, 3, 4, th.Generator().manual_seed(0), world_model, step)
    states = th.as_tensor(np.tile(model.env.reset(), (3, 4, 1)))
    policy.begin_step(1.0)
    first = policy(states, slice(0, 4)) * 0 + policy.actions.clone()
    # Asked again within a step, it answers the same
    policy(states, slice(0, 4))
    assert th.equal(policy.actions, first)
    generator = th.Generator()
    generator.set_state(policy.generator.get_state())
    policy.begin_step(0.75)
    policy(states, slice(0, 4))
    with th.no_grad():
        distribution = model.policy.get_distribution(states.flatten(0, 1)).distribution
    limit = MAX_DEVIATIONS * distribution.stddev
    clipped = distribution.mean + (first.flatten(0, 1) - distribution.mean).clamp(-limit, limit)
    clipped.requires_grad_()
    (score,) = th.autograd.grad(distribution.log_prob(clipped).sum(), clipped)
    # From pure noise, a step of a quarter leads to the noise level of time 0.75
    deviation = np.sin(0.5 * np.pi * 0.75)
    noise = deviation * world_model.action_normalizer.scale * th.randn(12, 1, generator=generator)
    expected = clipped + step * distribution.variance * score + noise
    th.testing.assert_close(policy.actions.flatten(0, 1), expected.detach(), rtol=1e-4, atol=1e-5)


def test_models_tune_a_sampler_that_they_were_all_given_by_themselves() -> None:
    actions = PolicyScoreActions(step=0.3, tuning_rate=0.5)
    steps = [make_model(actions).learn(64).action_sampler.step for _ in range(2)]
    assert actions.step == 0.3
    assert steps[0] == steps[1] != 0.3


@pytest.mark.parametrize("sampler, n_steps", [("ddpm", 8), ("ddpm", 64), ("flow", 8)])
@pytest.mark.parametrize("first_step", [0.01, 0.9])
def test_tuning_gives_standardised_actions_unit_deviation(sampler: str, n_steps: int, first_step: float) -> None:
    actions = PolicyScoreActions(step=first_step, tuning_rate=0.5)
    model = make_model(actions, sampler=sampler, n_denoising_steps=n_steps).learn(64)
    deviations = []
    for _ in range(40):
        rows, _ = model.imagination.imagine_rows(NO_GUIDANCE, 512)
        with th.no_grad():
            distribution = model.policy.get_distribution(rows.observations).distribution
        standardised = (rows.actions - distribution.mean) / distribution.stddev
        assert standardised.abs().max() <= MAX_DEVIATIONS + 1e-3
        deviations.append(standardised.square().mean().sqrt().item())
        assert standardised_deviation(model.imagination.agent, rows) == pytest.approx(deviations[-1], rel=1e-3)
    assert np.mean(deviations[-10:]) == pytest.approx(1.0, abs=0.05)


def test_tuning_asks_the_policy_for_its_own_standard_deviation() -> None:
    class WideAtFirst(ActorCriticPolicy):
        def get_distribution(self, obs: th.Tensor) -> DiagGaussianDistribution:
            distribution = super().get_distribution(obs)
            normal = distribution.distribution
            distribution.distribution = th.distributions.Normal(normal.mean, normal.stddev * (1 + obs[:, :1].abs()))
            return distribution

    model = AGDPPO(WideAtFirst, "Pendulum-v1", **SMALL | {"n_denoising_steps": 8, "world_model_kwargs": MLP}).learn(64)
    rows, _ = model.imagination.imagine_rows(NO_GUIDANCE, 512)
    with th.no_grad():
        distribution = model.policy.get_distribution(rows.observations).distribution
    drawn = rows._replace(actions=distribution.sample())
    assert standardised_deviation(model.imagination.agent, drawn) == pytest.approx(1, abs=0.1)


def test_imagination_with_a_seed_repeats_itself_and_tunes_nothing() -> None:
    model = make_model().learn(64)
    starts, step = model.env.reset(), model.action_sampler.step
    first, second = model.imagine(starts, seed=3), model.imagine(starts, seed=3)
    assert np.array_equal(first.actions, second.actions) and np.array_equal(first.observations, second.observations)
    assert model.action_sampler.step == step


@pytest.mark.parametrize("weight", ["calibrated", "sigma4"])
def test_guided_segments_come_from_the_same_noise_of_actions_as_unguided_ones(weight: str) -> None:
    model = make_model(sampler="ddpm", guidance_mode="gradient").learn(64)
    imagination, starts = model.imagination, th.as_tensor(model.env.reset()).repeat(20, 1)
    guidance = Guidance(SigmoidAdvantageGuide(weight), "gradient", 1e-12)
    segments, actions = imagination.imagine(starts, guidance, imagination.generator(0))
    free, free_actions = imagination.imagine(starts, NO_GUIDANCE, imagination.generator(0))
    th.testing.assert_close(actions, free_actions, rtol=0, atol=1e-4)
    assert imagination.world_model.guidance_norm < 1e-3
    assert segments.observations.shape == free.observations.shape


def test_the_tuned_step_is_saved_with_the_model(tmp_path: Path) -> None:
    model = make_model().learn(96)
    assert model.action_sampler.step != PolicyScoreActions().step
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    assert loaded.action_sampler.step == model.action_sampler.step
    assert vars(pickle.loads(pickle.dumps(model.action_sampler))) == vars(model.action_sampler)


@pytest.mark.parametrize(
    "arguments, name",
    [({"step": 0}, "step"), ({"step": 1.5}, "step"), ({"step": "long"}, "step"), ({"tuning_rate": -1}, "tuning_rate")],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PolicyScoreActions(**arguments)


def test_policies_and_networks_that_it_does_not_suit_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"`action_sampler` PolicyScoreActions needs a network .* \"mlp\""):
        make_model(world_model_kwargs=None)
    with pytest.raises(ValueError, match="PolicyScoreActions needs `n_denoising_steps` of at least 2"):
        make_model(n_denoising_steps=1)
    for changes in ({"use_sde": True}, {"env": ToyEnv(action_space=spaces.Discrete(3))}):
        env = changes.pop("env", "Pendulum-v1")
        settings = SMALL | {"world_model_kwargs": MLP} | changes
        with pytest.raises(ValueError, match="`action_sampler` PolicyScoreActions needs a Gaussian policy"):
            AGDPPO("MlpPolicy", env, action_sampler=PolicyScoreActions(), **settings)

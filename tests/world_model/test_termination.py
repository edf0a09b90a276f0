"""Terminations: the classifier, its calibration, and rules of the user."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    HORIZON,
    OBSERVATION_DIM,
    Recording,
    Rule,
    at_once,
    beyond_limit,
    by_chance,
    fitted,
    linear_critic,
    linear_policy,
    make_model,
    never,
    objective_of,
    prediction_errors,
    seeded,
    well_fitted,
)
from torch import nn

from sb3_agd.imagination import SigmoidAdvantageGuide
from sb3_agd.world_model import DiffusionWorldModel, Segments
from sb3_agd.world_model.segments import mask_after_termination
from sb3_agd.world_model.termination import half_of


@functools.cache
def fitted_to(rule: Rule, network: str) -> DiffusionWorldModel:
    return well_fitted(Recording(rule), 500, network=network)


# What ends by chance does not depend on the states that a network predicts
@pytest.mark.parametrize(
    ("rule", "network"),
    [(beyond_limit, "recurrent"), (beyond_limit, "mlp"), (by_chance, "recurrent")],
    ids=["limit-recurrent", "limit-mlp", "chance"],
)
def test_terminations_are_imagined_at_the_real_rate(rule: Rule, network: str) -> None:
    model = fitted_to(rule, network)
    held_out = Recording(rule, seed=5).segments(5000)
    # Segments that the end of the recording cut off say nothing about how long they would have gone on
    whole = held_out.mask.all(1) | held_out.terminations.any(1)
    real = held_out.map(lambda array: array[whole])
    imagined = model.imagine(real.observations[:, 0], lambda _, steps: real.actions[:, steps], generator=seeded(6))
    real_rate = real.terminations[real.mask].float().mean().item()
    imagined_rate = imagined.terminations[imagined.mask].float().mean().item()
    assert 0.01 < real_rate < 0.1
    assert real_rate / 1.25 < imagined_rate < real_rate * 1.25


def test_terminations_are_imagined_where_the_real_rule_ends_the_episode() -> None:
    model = fitted_to(beyond_limit, "recurrent")
    real = Recording(beyond_limit, seed=5).segments(5000)
    imagined = model.imagine(real.observations[:, 0], lambda _, steps: real.actions[:, steps], generator=seeded(6))
    over = (imagined.observations[:, 1:, 0] > 1.2)[imagined.mask]
    terminated = imagined.terminations[imagined.mask]
    assert terminated[over].float().mean() > 0.7
    assert terminated[~over].float().mean() < 0.02


class FewFalls:
    """
    Transitions of 17 dimensions that are terminal where the first one is beyond a limit.

    :param n_transitions: Number of transitions
    :param seed: Seed
    :param limit: The limit; by default, one in 44 is terminal
    """

    def __init__(self, n_transitions: int, seed: int, limit: float = 2.0):
        self.generator = seeded(seed)
        self.states = th.randn(n_transitions, 2, 17, generator=self.generator)
        self.terminations = self.states[:, 1:, 0] > limit
        self.terminal = self.terminations.flatten().nonzero().flatten()
        self.termination_rate = len(self.terminal) / n_transitions

    def _segments(self, rows: th.Tensor) -> Segments[th.Tensor]:
        zeros, always = th.zeros(len(rows), 1), th.ones(len(rows), 1, dtype=th.bool)
        return Segments(self.states[rows], zeros[..., None], zeros, self.terminations[rows], always)

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        return self._segments(th.randint(len(self.states), (n_segments,), generator=self.generator))

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        drawn = th.randint(len(self.terminal), (n_transitions,), generator=self.generator)
        return self._segments(self.terminal[drawn])


def predicted_falls(known: FewFalls, new: FewFalls, gradient_steps: int) -> th.Tensor:
    """Probabilities of new transitions after training on known ones, shape (N, 1)."""
    model = DiffusionWorldModel(17, 1, horizon=1, network_kwargs={"width": 16, "depth": 1}, seed=0)
    actions = th.zeros(len(known.states), 1)
    model.observe(known.states[:, 1], actions, actions.flatten(), known.terminations.flatten())
    model.fit(known, gradient_steps, 128, generator=seeded())
    return model.termination_probabilities(new.states, th.zeros(len(new.states), 1, 1))


def test_few_terminal_transitions_are_not_memorised() -> None:
    """Cross-entropy on new transitions: worse than that of the mere rate if they are."""
    known, new = FewFalls(2_000, seed=0), FewFalls(20_000, seed=1)
    probabilities = predicted_falls(known, new, 1_000)
    targets = new.terminations.float()
    mere_rate = th.full_like(targets, targets.mean().item())
    cross_entropy = nn.functional.binary_cross_entropy
    assert cross_entropy(probabilities, targets) < 0.8 * cross_entropy(mere_rate, targets)


@pytest.mark.parametrize("n_terminal, factor", [(20, 2), (1, 3)])
def test_rare_terminations_of_new_transitions_are_predicted_at_the_real_rate(n_terminal: int, factor: float) -> None:
    known, new = FewFalls(100_000, seed=0, limit=3.54), FewFalls(100_000, seed=1, limit=3.54)
    known.terminations[known.terminal[n_terminal:]] = False
    known.states[known.terminal[n_terminal:], 1, 0] = 0.0
    known.terminal = known.terminal[:n_terminal]
    known.termination_rate = len(known.terminal) / len(known.states)
    rate = predicted_falls(known, new, 800).mean().item()
    assert known.termination_rate / factor < rate < factor * known.termination_rate


def test_transitions_to_the_same_state_are_divided_between_both_classifiers() -> None:
    """All episodes may end in one state, such as zeros."""
    transitions = th.cat([th.randn(1000, 5, generator=th.Generator().manual_seed(0)), th.zeros(1000, 3)], dim=1)
    halves = half_of(transitions)
    assert 450 < halves.sum() < 550
    assert th.equal(half_of(transitions.flip(0)), halves.flip(0))


def test_prediction_error_compares_the_rates_of_termination() -> None:
    model = fitted_to(beyond_limit, "recurrent")
    errors = prediction_errors(model, Recording(beyond_limit, seed=5).segments(5000), seeded(6))
    assert errors["imagined_terminations"].item() == pytest.approx(errors["real_terminations"].item(), rel=0.25)


def test_segments_cut_off_by_the_end_of_the_data_do_not_lower_the_real_rate_of_termination() -> None:
    source = Recording(beyond_limit)
    model, segments = fitted(source), source.segments(2000)
    cut = segments.mask.sum(1) < HORIZON
    cut &= ~segments.terminations.any(1)
    assert cut.any()
    whole = segments.map(lambda array: array[~cut])
    rates = [prediction_errors(model, s, seeded())["real_terminations"].item() for s in (segments, whole)]
    assert rates[0] == rates[1] == pytest.approx(whole.terminations[whole.mask].float().mean().item())


def test_first_step_is_compared_if_no_segment_reaches_the_horizon() -> None:
    errors = prediction_errors(fitted(Recording(at_once)), Recording(at_once, seed=5).segments(50), seeded(6))
    assert errors["states"][0].isfinite()
    assert errors["imagined_terminations"].isfinite()
    assert errors["real_terminations"] == 1


def test_no_termination_is_imagined_if_none_was_observed() -> None:
    model = fitted(Recording(never))
    # Even if the classifier would call every transition terminal
    with th.no_grad():
        for parameter in model.ema_networks["termination"].parameters():
            parameter.fill_(10.0)
    imagined = model.imagine(th.zeros(500, OBSERVATION_DIM), linear_policy, generator=seeded())
    assert not imagined.terminations.any()
    assert imagined.mask.all()


def test_a_loaded_model_imagines_the_terminations_of_the_saved_one() -> None:
    model, other = fitted(Recording(by_chance)), fitted(Recording(never))
    other.load_state_dict(model.state_dict())
    start = th.randn(500, OBSERVATION_DIM, generator=seeded())
    imagined, again = (one.imagine(start, linear_policy, generator=seeded(1)) for one in (model, other))
    assert imagined.terminations.any() and th.equal(imagined.terminations, again.terminations)


def test_user_given_rule_of_termination_replaces_the_model() -> None:
    received = []

    def rule(observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        assert observations.shape == next_observations.shape == (len(actions), OBSERVATION_DIM)
        assert actions.shape[1:] == (ACTION_DIM,)
        received.append((observations, actions, next_observations))
        return next_observations[:, 0] > 0

    model = fitted(Recording(by_chance), termination_fn=rule)
    start = th.randn(50, OBSERVATION_DIM, generator=seeded())
    imagined = model.imagine(start, linear_policy, objective_of(SigmoidAdvantageGuide(), linear_critic()), 1.0, seeded(1))
    above = imagined.observations[:, 1:, 0] > 0
    assert th.equal(imagined.terminations[imagined.mask], above[imagined.mask])
    assert imagined.terminations.any()
    assert th.equal(imagined.mask, mask_after_termination(above))
    observations, actions, next_observations = received[-1]
    assert np.array_equal(observations, imagined.observations[:, :-1].reshape(-1, OBSERVATION_DIM))
    assert np.array_equal(actions, imagined.actions.reshape(-1, ACTION_DIM))
    assert np.array_equal(next_observations, imagined.observations[:, 1:].reshape(-1, OBSERVATION_DIM))


@pytest.mark.parametrize("value", [0.3, 2.0, float("nan"), 1, None])
def test_rule_of_termination_may_return_booleans_only(value: Any) -> None:
    model = make_model(termination_fn=lambda observations, *_: np.full(len(observations), value))
    with pytest.raises(ValueError, match="`termination_fn` must return booleans, not"):
        model.imagine(th.zeros(50, OBSERVATION_DIM), linear_policy, generator=seeded())


@pytest.mark.parametrize("convert", [np.asarray, list, th.as_tensor], ids=["array", "list", "tensor"])
def test_rule_of_termination_may_return_any_sequence_of_booleans(convert: Callable) -> None:
    model = make_model(termination_fn=lambda observations, *_: convert(np.arange(len(observations)) % 2 == 1))
    imagined = model.imagine(th.zeros(50, OBSERVATION_DIM), linear_policy, generator=seeded())
    assert th.equal(imagined.terminations.flatten(), th.arange(150) % 2 == 1)


@pytest.mark.parametrize("outcome", [np.zeros((150, 1), bool), np.zeros(3, bool), True], ids=["column", "few", "scalar"])
def test_rule_of_termination_of_a_wrong_shape_is_refused(outcome: Any) -> None:
    model = make_model(termination_fn=lambda *_: outcome)
    with pytest.raises(ValueError, match="termination_fn"):
        model.imagine(th.zeros(50, OBSERVATION_DIM), linear_policy, generator=seeded())

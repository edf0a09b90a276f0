"""Errors that name the argument."""

from typing import Any

import numpy as np
import pytest
import torch as th
from linear_system import (
    ACTION_DIM,
    HORIZON,
    OBSERVATION_DIM,
    linear_critic,
    linear_policy,
    make_model,
    objective_of,
    seeded,
)
from torch import nn

from sb3_agd.imagination import RewardGuide


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("horizon", 0),
        ("horizon", -1),
        ("horizon", 2.5),
        ("horizon", "8"),
        ("n_denoising_steps", 0),
        ("n_denoising_steps", 1.0),
        ("network_kwargs", {"widht": 8}),
        ("network_kwargs", 8),
        ("network_kwargs", {"horizon": 3}),
        ("network", "transformer"),
        ("network", int),
        ("network", nn.Identity()),
        ("sampler", "euler"),
        ("sampler", None),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("ema_decay", "a"),
        ("sampler", ["flow"]),
        ("ema_decay", float("nan")),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("termination_fn", True),
        ("terminations", "regressed"),
        ("terminations", None),
        ("terminations", True),
    ],
)
def test_bad_argument_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`"):
        make_model(**{argument: value})


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_guidance_scale_is_refused_by_name(scale: float) -> None:
    with pytest.raises(ValueError, match="`guidance_scale`"):
        make_model().imagine(
            th.zeros(2, OBSERVATION_DIM), linear_policy, objective_of(RewardGuide(), linear_critic()), scale, seeded()
        )


@pytest.mark.parametrize("argument", ["sampler", "network"])
def test_error_lists_the_choices(argument: str) -> None:
    choices = {"sampler": ("flow", "heun", "ddim", "ddpm"), "network": ("recurrent", "mlp")}[argument]
    with pytest.raises(ValueError) as error:
        make_model(**{argument: "unknown"})
    assert all(repr(choice) in str(error.value) for choice in choices)


def test_number_of_candidates_must_divide_the_number_of_start_states() -> None:
    with pytest.raises(ValueError, match="`n_candidates` 4 must divide the number of start states, 6"):
        make_model().imagine(th.zeros(6, OBSERVATION_DIM), linear_policy, n_candidates=4)


@pytest.mark.parametrize("kwargs", [{"width": 0}, {"width": True}, {"depth": -3}, {"depth": "2"}])
def test_bad_arguments_of_the_network_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`network_kwargs\\['{next(iter(kwargs))}'\\]`"):
        make_model(network_kwargs=kwargs)


def test_custom_network_gets_its_own_keyword_arguments() -> None:
    class Custom(nn.Module):
        def __init__(self, observation_dim: int, action_dim: int, horizon: int, *, n_heads: int):
            super().__init__()
            self.received = (observation_dim, action_dim, horizon, n_heads)

    model = make_model(network=Custom, network_kwargs={"n_heads": 4})
    assert model.networks["denoiser"].received == (OBSERVATION_DIM, ACTION_DIM, HORIZON, 4)
    with pytest.raises(ValueError, match="n_heads"):
        make_model(network=Custom, network_kwargs={})


def test_numpy_integers_are_accepted() -> None:
    model = make_model(horizon=np.int64(4), n_denoising_steps=np.int32(2), network_kwargs={"width": np.int64(8)})
    assert model.horizon == 4

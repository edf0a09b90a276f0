"""``AGDPPO.imagine`` as users call it: arrays of any layout, single observations, given actions and horizons."""

from typing import Any

import numpy as np
import pytest
from environments import SMALL, ToyEnv
from gymnasium import spaces

from sb3_agd import AGDPPO


@pytest.fixture(scope="module")
def model() -> AGDPPO:
    return AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)


@pytest.fixture(scope="module")
def starts(model: AGDPPO) -> np.ndarray:
    return model.replay_buffer.observations[0, 10:16].copy()


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    "laid_out",
    [lambda a: a[::-1].copy()[::-1], lambda a: np.asfortranarray(a), read_only, lambda a: a.astype(np.float64), list],
    ids=["negative strides", "columns", "read-only", "double precision", "list"],
)
@pytest.mark.filterwarnings("error")
def test_observations_of_any_layout_are_imagined_alike(laid_out: Any, model: AGDPPO, starts: np.ndarray) -> None:
    expected = model.imagine(starts, seed=0)
    np.testing.assert_array_equal(model.imagine(laid_out(starts), seed=0).observations, expected.observations)


def test_a_numpy_integer_is_a_seed(model: AGDPPO, starts: np.ndarray) -> None:
    np.testing.assert_array_equal(model.imagine(starts, seed=np.int64(3)).actions, model.imagine(starts, seed=3).actions)


def test_a_single_observation_is_a_batch_of_one(model: AGDPPO, starts: np.ndarray) -> None:
    single, batch = model.imagine(starts[0], seed=0), model.imagine(starts[:1], seed=0)
    assert single.observations.shape == (1, SMALL["horizon"] + 1, 3)
    np.testing.assert_array_equal(single.observations, batch.observations)


def test_a_single_discrete_observation_is_a_batch_of_one() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.Discrete(4)), **SMALL).learn(64)
    assert model.imagine(np.array(2)).observations[:, 0].tolist() == [[2]]


def test_given_actions_are_taken(model: AGDPPO, starts: np.ndarray) -> None:
    actions = np.random.default_rng(0).uniform(-2, 2, (6, 3, 1)).astype(np.float32)
    segments = model.imagine(starts, actions=read_only(actions)[:, ::-1], seed=0)
    np.testing.assert_array_equal(segments.actions, actions[:, ::-1])
    assert segments.observations.shape == (6, 4, 3)
    np.testing.assert_array_equal(segments.observations[:, 0], starts)
    # Other actions lead to other states
    assert not np.array_equal(model.imagine(starts, actions=-actions, seed=0).observations, segments.observations)


def test_given_discrete_actions_are_taken() -> None:
    model = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL).learn(64)
    actions = np.array([[0, 1, 1], [1, 1, 0]])
    assert model.imagine(np.zeros((2, 4)), actions=actions).actions[..., 0].tolist() == actions.tolist()
    with pytest.raises(ValueError, match=r"`actions` must be of Discrete\(2\)"):
        model.imagine(np.zeros((2, 4)), actions=actions + 1)


@pytest.mark.parametrize("guidance_mode", ["select", "gradient"])
@pytest.mark.parametrize("horizon", [1, 3, 20])
def test_the_recurrent_network_imagines_any_horizon(horizon: int, guidance_mode: str, starts: np.ndarray) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"guidance_mode": guidance_mode}).learn(64)
    segments = model.imagine(starts, guidance_scale=1.0, horizon=horizon)
    assert segments.actions.shape == (6, horizon, 1) and segments.observations.shape == (6, horizon + 1, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"actions": np.zeros((2, 3, 1))}, r"`actions` must have shape \(6, horizon, 1\), not \(2, 3, 1\)"),
        ({"actions": np.zeros((6, 3, 2))}, r"`actions` must have shape"),
        ({"actions": np.zeros((6, 0, 1))}, r"`actions` must have shape"),
        ({"actions": np.zeros(6)}, r"`actions` must have shape"),
        ({"actions": np.full((6, 3, 1), np.nan)}, "`actions` must be finite"),
        ({"actions": np.zeros((6, 3, 1)), "horizon": 3}, "`horizon` cannot be given with `actions`"),
        ({"actions": np.zeros((6, 3, 1)), "guidance": "sag"}, "`guidance` cannot be given with `actions`"),
        ({"actions": np.zeros((6, 3, 1)), "guidance_scale": 2.0}, "`guidance_scale` cannot be given with `actions`"),
        ({"horizon": 0}, "`horizon` must be an integer of at least 1"),
        ({"horizon": 2.5}, "`horizon` must be an integer of at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str, model: AGDPPO, starts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        model.imagine(starts, **arguments)


def test_a_network_of_fixed_horizon_refuses_others(starts: np.ndarray) -> None:
    kwargs = {"world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 16, "depth": 1}}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | kwargs).learn(64)
    with pytest.raises(ValueError, match="`horizon` must be 4 with the network ResidualMLPDenoiser, not 5"):
        model.imagine(starts, horizon=5)

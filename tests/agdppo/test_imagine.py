"""``AGDPPO.imagine`` as users call it: arrays of any layout, single observations, given actions, horizons and seeds."""

import warnings
from pathlib import Path
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
def test_observations_of_any_layout_are_imagined_alike(laid_out: Any, model: AGDPPO, starts: np.ndarray) -> None:
    expected = model.imagine(starts, seed=0)
    with warnings.catch_warnings():
        # PyTorch warns of read-only arrays
        warnings.simplefilter("error")
        imagined = model.imagine(laid_out(starts), seed=0)
    np.testing.assert_array_equal(imagined.observations, expected.observations)


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


@pytest.mark.parametrize("seed", ["a", 1.5, -1])
def test_a_seed_that_is_no_number_of_a_stream_is_refused_by_name(seed: Any, model: AGDPPO, starts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0"):
        model.imagine(starts, seed=seed)


def test_a_network_of_fixed_horizon_refuses_others(starts: np.ndarray) -> None:
    kwargs = {"world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 16, "depth": 1}}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | kwargs).learn(64)
    with pytest.raises(ValueError, match="`horizon` must be 4 with the network ResidualMLPDenoiser, not 5"):
        model.imagine(starts, horizon=5)


def test_random_seeds_of_sb3_reach_imagination(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    starts = model.env.reset()
    model.set_random_seed(3)
    expected = model.imagine(starts).actions
    model.set_random_seed(3)
    assert np.array_equal(model.imagine(starts).actions, expected)
    for seed in (3, 4):
        loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu", seed=seed)
        assert np.array_equal(loaded.imagine(starts).actions, expected) == (seed == 3)


def test_a_known_termination_rule_replaces_the_learned_one() -> None:
    seen = []

    def always(observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        seen.append((observations.shape, actions.shape, next_observations.shape))
        return np.ones(len(observations), dtype=bool)

    model = AGDPPO("MlpPolicy", ToyEnv(), termination_fn=always, **SMALL).learn(64)
    segments = model.imagine(np.zeros((6, 3), dtype=np.float32))
    assert segments.terminations.all()
    assert np.array_equal(segments.mask, np.arange(4)[None].repeat(6, 0) == 0)
    # Four candidates for each of the six start states, of four steps
    assert seen[-1] == ((96, 3), (96, 2), (96, 3))
    # A quarter of each segment is left
    assert model.rollout_buffer.n_imagined == 2 * 32 // 4


def test_a_world_model_that_was_never_trained_is_not_imagined_with() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="The world model was not trained yet"):
        model.imagine(np.zeros((2, 3)))


def test_imagine_refuses_bad_observations() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    for observations in (np.zeros(4), np.zeros((2, 4)), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match="`observations`"):
            model.imagine(observations)


@pytest.mark.parametrize("observation", [[3, 0], [0, -1], [0, 7], [1.7, 0.2]])
def test_imagine_refuses_what_is_not_in_a_discrete_space(observation: list[float]) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.MultiDiscrete([3, 3])), **SMALL)
    with pytest.raises(ValueError, match=r"`observations` must be of MultiDiscrete\(\[3 3\]\)"):
        model.imagine(np.array([observation]))


def test_imagine_refuses_an_empty_batch(model: AGDPPO) -> None:
    with pytest.raises(ValueError, match="`observations` must hold at least one start state"):
        model.imagine(np.zeros((0, 3)))

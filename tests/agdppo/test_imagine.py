"""The method :meth:`AGDPPO.imagine`."""

from pathlib import Path

import numpy as np
import pytest
from environments import SMALL, ToyEnv
from gymnasium import spaces

from sb3_agd import (
    AGDPPO,
)


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
    for observations in (np.zeros(3), np.zeros((2, 4)), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match="`observations`"):
            model.imagine(observations)


@pytest.mark.parametrize("observation", [[3, 0], [0, -1], [0, 7], [1.7, 0.2]])
def test_imagine_refuses_what_is_not_in_a_discrete_space(observation: list[float]) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(spaces.MultiDiscrete([3, 3])), **SMALL)
    with pytest.raises(ValueError, match=r"`observations` must be of MultiDiscrete\(\[3 3\]\)"):
        model.imagine(np.array([observation]))


def test_imagine_refuses_an_empty_batch() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    with pytest.raises(ValueError, match="`observations` must hold at least one start state"):
        model.imagine(np.zeros((0, 3)))

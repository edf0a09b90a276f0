"""Rows that the critic is judged on."""

from pathlib import Path

import numpy as np
import pytest
from environments import SMALL, ToyEnv
from stable_baselines3.common.env_util import make_vec_env

from sb3_agd import AGDPPO
from sb3_agd.imagination.critic_trust import RealRows


def trained(n_steps: int, n_timesteps: int = 256) -> AGDPPO:
    """A model whose policy and critic never change."""
    settings = SMALL | {"synthetic_ratio": 0.0, "learning_rate": 0.0, "gamma": 0.9, "n_steps": n_steps}
    env = ToyEnv(reward=lambda step: float(step % 7), episode_length=30, terminates=True)
    return AGDPPO("MlpPolicy", env, **settings).learn(n_timesteps)


def test_short_rollouts_are_judged_together_as_a_long_one() -> None:
    short, long = trained(4), trained(256)
    joined, one = short.imagination.state.real_rows, long.imagination.state.real_rows
    assert isinstance(joined, RealRows) and isinstance(one, RealRows)
    for name in ("rewards", "values", "episode_starts", "advantages"):
        np.testing.assert_allclose(getattr(joined, name), getattr(one, name), rtol=1e-4, atol=1e-4, err_msg=name)
    assert joined.explained_variance == pytest.approx(one.explained_variance, abs=1e-4)
    assert joined.advantage_std(0.9) == pytest.approx(one.advantage_std(0.9), rel=1e-4)


def test_no_more_rows_are_kept_than_are_needed() -> None:
    rows = trained(4, 400).imagination.state.real_rows
    assert isinstance(rows, RealRows) and len(rows.values) == 256
    rows = trained(300, 600).imagination.state.real_rows
    assert isinstance(rows, RealRows) and len(rows.values) == 300


def test_a_loaded_model_may_go_on_with_another_number_of_environments(tmp_path: Path) -> None:
    trained(4).save(tmp_path / "model")
    model = AGDPPO.load(tmp_path / "model", env=make_vec_env(ToyEnv, 2), device="cpu").learn(16)
    assert model.imagination.state.real_rows.values.shape == (8, 2)


def test_half_of_the_training_segments_of_the_world_model_come_from_more_than_a_few_rows() -> None:
    assert trained(4, 8).imagination._n_recent == trained(256).imagination._n_recent == 20 * 256


def test_one_step_of_many_environments_is_judged_with_the_one_before() -> None:
    settings = SMALL | {"n_steps": 1, "batch_size": 256, "real_steps_per_update": 256, "synthetic_ratio": 0.0}
    model = AGDPPO("MlpPolicy", make_vec_env(ToyEnv, 256), **settings).learn(2 * 256)
    rows = model.imagination.state.real_rows
    assert isinstance(rows, RealRows) and rows.values.shape == (2, 256)
    assert rows.advantage_std(0.99) > 0

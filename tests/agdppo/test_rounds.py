"""Long rollouts: the world model and the policy are updated in rounds."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd import AGDPPO


def test_after_a_long_rollout_the_policy_is_updated_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, train = [], PPO.train

    def watched(model: AGDPPO) -> None:
        buffer = model.rollout_buffer
        imagined = buffer.imagined
        assert imagined is not None
        with th.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(imagined.observations, imagined.actions)
        # Imagined by the policy that is about to be updated
        assert th.allclose(log_prob, imagined.old_log_prob, atol=1e-5)
        real = next(buffer.get()).observations
        rows.append((len(imagined.observations), len(real) - len(imagined.observations)))
        train(model)

    monkeypatch.setattr(PPO, "train", watched)
    settings = SMALL | {"n_steps": 48, "real_data_ratio": 0, "real_steps_per_update": 32}
    model = AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", 2), **settings).learn(2 * 96)
    # Three rounds for each of two rollouts of 96 transitions: 64 imagined and 32 real ones each
    assert rows == [(64, 32)] * 6
    assert model._n_updates == 6 * SMALL["n_epochs"]
    # Five times as many updates of the world model at first
    assert model.world_model.n_updates == (5 + 5) * SMALL["world_model_gradient_steps"]


@pytest.mark.parametrize("use_sde", [False, True])
def test_real_rows_of_each_round_have_the_estimates_of_the_present_policy(
    use_sde: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, train = [], PPO.train

    def watched(model: AGDPPO) -> None:
        rows = next(model.rollout_buffer.get())
        with th.no_grad():
            values, log_prob, _ = model.policy.evaluate_actions(rows.observations, rows.actions)
        assert th.allclose(values.flatten(), rows.old_values, atol=1e-4)
        outside.append(((log_prob - rows.old_log_prob).exp() - 1).abs().max().item())
        # In the terms of SB3: the returns are the advantages on top of these values
        low, high = model.imagination.state.value_range
        bounded = rows.old_values.clamp(low, high)
        assert th.allclose(rows.returns, (rows.advantages + bounded).clamp(low, high), atol=1e-3)
        train(model)

    monkeypatch.setattr(PPO, "train", watched)
    settings = SMALL | {"n_steps": 128, "real_steps_per_update": 32, "learning_rate": 3e-3, "n_epochs": 10, "use_sde": use_sde}
    AGDPPO("MlpPolicy", "Pendulum-v1", **settings).learn(2 * 128)
    assert len(outside) == 8 and max(outside) < 1e-3


def test_rewards_at_time_limits_have_the_values_of_the_present_critic_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 adds the value of the last state to the reward of an episode that a time limit ends."""
    differences, train = [], PPO.train

    def watched(model: AGDPPO) -> None:
        buffer, recorder = model.rollout_buffer, model.imagination.recorder
        with th.no_grad():
            for (step, index), observation in recorder.cut_off_observations:
                value = model.policy.predict_values(th.as_tensor(observation)[None]).item()
                added = buffer.rewards[step, index] - recorder.rewards[step][index]
                differences.append(added - model.gamma * value)
        train(model)

    monkeypatch.setattr(PPO, "train", watched)
    settings = SMALL | {"n_steps": 64, "learning_rate": 3e-2, "rollout_buffer_kwargs": {"bound_values": False}}
    env = VecNormalize(make_vec_env(ToyEnv, 2, env_kwargs={"episode_length": 16}))
    AGDPPO("MlpPolicy", env, **settings).learn(2 * 2 * 64)
    # Four episodes of each environment in each of four rounds after two rollouts
    assert len(differences) == 4 * 2 * 4 * 2
    assert np.abs(differences).max() < 1e-4


def test_each_real_row_is_learned_from_in_one_round_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, train = [], PPO.train

    def watched(model: AGDPPO) -> None:
        real = next(model.rollout_buffer.get()).observations
        imagined = {row.tobytes() for row in model.rollout_buffer.imagined.observations.numpy()}
        seen.append([row.tobytes() for row in real.numpy() if row.tobytes() not in imagined])
        train(model)

    monkeypatch.setattr(PPO, "train", watched)
    settings = SMALL | {"n_steps": 96, "real_data_ratio": 0, "real_steps_per_update": 32, "horizon": 1}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **settings).learn(96)
    everything = sorted(row.tobytes() for row in model.rollout_buffer.observations)
    # Segments of one step begin in real states, so some of these may be missing
    assert len(seen) == 3
    assert all(row in everything for part in seen for row in part)
    assert len({row for part in seen for row in part}) == sum(map(len, seen))


def test_rounds_in_which_the_world_model_diverges_have_their_real_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fits, rows = (
        AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"real_steps_per_update": 8, "real_data_ratio": 0}),
        [],
        [],
    )
    fit, train = model.imagination.fit, PPO.train

    def diverging(*arguments: Any) -> dict[str, float]:
        fits.append(arguments)
        if len(fits) == 3:
            raise FloatingPointError("It has diverged")
        return fit(*arguments)

    def watched(model: AGDPPO) -> None:
        n_imagined = model.rollout_buffer.n_imagined
        rows.append((n_imagined, len(next(model.rollout_buffer.get()).advantages) - n_imagined))
        train(model)

    monkeypatch.setattr(model.imagination, "fit", diverging)
    monkeypatch.setattr(PPO, "train", watched)
    with pytest.warns(UserWarning, match="It has diverged"):
        model.learn(32)
    assert rows == [(16, 8), (16, 8), (0, 8), (16, 8)]


def test_real_steps_per_update_may_change_during_training() -> None:
    class Whole(BaseCallback):
        def _on_step(self) -> bool:
            self.model.real_steps_per_update = 32 if self.num_timesteps > 32 else 16
            return True

    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64, Whole())
    assert model._n_updates == (2 + 1) * SMALL["n_epochs"]


def test_rounds_end_where_the_policy_diverges() -> None:
    """As with PPO, the next step in the environment tells."""
    one_update = {"n_epochs": 1, "batch_size": 1000, "real_steps_per_update": 8, "vf_coef": math.nan}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | one_update).learn(32)
    assert model._n_updates == 1
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        model.learn(32, reset_num_timesteps=False)

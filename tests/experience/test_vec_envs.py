"""Any ``VecEnv`` that trains PPO trains AGDPPO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environments import SMALL, ToyEnv
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from vector_environments import Agents, BareVecEnv, OverAgents, OverGymnasium

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, GuidanceCallback, ResumableCheckpointCallback


def make_counter(episode_length: int = 10) -> ToyEnv:
    """Its observations hold the number of steps of the episode, in thousandths."""
    return ToyEnv(episode_length=episode_length, observe=lambda step: np.full(3, step / 1000, dtype=np.float32))


FOREIGN: dict[str, Callable[[], VecEnv]] = {
    "no constructor": lambda: BareVecEnv(make_counter),
    "gymnasium": lambda: OverGymnasium("CartPole-v1"),
    "agents": lambda: OverAgents(Agents(make_counter)),
    "monitored": lambda: VecMonitor(BareVecEnv(make_counter)),
    "normalised": lambda: VecNormalize(OverAgents(Agents(make_counter))),
}


@pytest.mark.parametrize("make_env", FOREIGN.values(), ids=list(FOREIGN))
def test_foreign_vectorised_environments_train(make_env: Callable[[], VecEnv]) -> None:
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "device": "cpu"}
    PPO("MlpPolicy", make_env(), **kwargs).learn(64)
    model = AGDPPO("MlpPolicy", make_env(), **{**SMALL, "n_steps": 16}).learn(64).learn(64, reset_num_timesteps=False)
    assert model.rollout_buffer.n_imagined > 0
    assert len(model.replay_buffer) == 128
    if not isinstance(model.env, OverGymnasium):
        segments = model.replay_buffer.segments(*model.replay_buffer.recent_transitions(1000), horizon=1)
        steps = (1000 * segments.observations[..., 0]).round()
        assert (steps[:, 1] - steps[:, 0] == 1).all()


def test_checkpoints_of_foreign_vectorised_environments_start_new_episodes(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", OverAgents(Agents(make_counter)), **{**SMALL, "n_steps": 16})
    with pytest.warns(UserWarning, match="resumed run will start new ones"):
        model.learn(64, ResumableCheckpointCallback(16, str(tmp_path)))
    loaded = AGDPPO.load(tmp_path / "rl_model_32_steps", OverAgents(Agents(make_counter)), force_reset=False)
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 64


class Hiding(VecEnvWrapper):
    """Does not report the last observations of episodes."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones, [{} for _ in infos]


def test_transitions_to_unknown_last_states_are_left_out_with_a_warning_that_names_the_environment() -> None:
    env = Hiding(DummyVecEnv([lambda: make_counter(50), lambda: make_counter(10)]))
    model = AGDPPO("MlpPolicy", env, **SMALL)
    with pytest.warns(UserWarning, match=r"environment 1 lacks .terminal_observation.* ended at step 20") as caught:
        model.learn(64)
    assert len([each for each in caught if "terminal_observation" in str(each.message)]) == 1
    # 32 steps of each environment, three of which end an episode
    assert len(model.replay_buffer) == 61
    env_indices, indices = model.replay_buffer.recent_transitions(1000)
    segments = model.replay_buffer.segments(env_indices, indices, horizon=4)
    steps = (1000 * segments.observations[..., 0]).round()
    assert (np.diff(steps)[segments.mask.numpy()] == 1).all()
    assert steps[env_indices == 1].max() == 9
    assert not segments.terminations.any()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_training_continues_through_rollouts_without_a_known_transition(n_steps: int) -> None:
    env = Hiding(DummyVecEnv([lambda: make_counter(4)]))
    callback = GuidanceCallback(horizon=2, world_model_warmup=0, world_model_gradient_steps=2, world_model_batch_size=8)
    model = A2C("MlpPolicy", env, n_steps=n_steps, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    with pytest.warns(UserWarning, match="terminal_observation"):
        model.learn(24, callback)
    assert callback.imagination is not None
    assert len(callback.imagination.replay_buffer) == 18
    for values in callback.world_model.state_dict().values():
        assert values.isfinite().all()


def test_an_environment_without_any_known_transition_is_refused() -> None:
    with pytest.raises(ValueError, match=r"environment 0 lacks .terminal_observation"):
        AGDPPO("MlpPolicy", Hiding(DummyVecEnv([lambda: make_counter(1)])), **SMALL).learn(64)

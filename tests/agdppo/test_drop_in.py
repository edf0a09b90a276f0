"""AGDPPO in PPO's place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_agd import AGDPPO
from sb3_agd.imagination import NO_GUIDANCE

PPO_ARGUMENTS = {key: SMALL[key] for key in ("n_steps", "batch_size", "n_epochs", "policy_kwargs", "device", "seed")}


def parameters(model: PPO) -> dict[str, th.Tensor]:
    """Copy of all parameters of the policy."""
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_parameters(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert th.equal(value, second[name]), name


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_without_imagined_data_it_is_ppo_bit_for_bit(env_id: str, n_envs: int) -> None:
    ppo = PPO("MlpPolicy", make_vec_env(env_id, n_envs, seed=1), **PPO_ARGUMENTS).learn(300)
    # Nor before the warm-up is over, however small the rounds
    for without in ({"synthetic_ratio": 0}, {"world_model_warmup": 1000, "real_steps_per_update": 8}):
        agdppo = AGDPPO("MlpPolicy", make_vec_env(env_id, n_envs, seed=1), **SMALL | without).learn(300)
        assert_same_parameters(parameters(ppo), parameters(agdppo))


def test_without_imagined_data_it_is_ppo_bit_for_bit_with_gsde_and_vec_normalize() -> None:
    trained = []
    for algorithm, arguments in ((PPO, PPO_ARGUMENTS), (AGDPPO, SMALL | {"synthetic_ratio": 0})):
        env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=1))
        model = algorithm("MlpPolicy", env, use_sde=True, sde_sample_freq=4, **arguments).learn(300)
        trained.append(parameters(model))
    assert_same_parameters(*trained)


def test_constructor_has_the_arguments_and_defaults_of_ppo() -> None:
    import inspect

    theirs, ours = (inspect.signature(algorithm).parameters for algorithm in (PPO, AGDPPO))
    shared = [name for name in theirs if name != "_init_setup_model"]
    assert list(ours)[: len(shared)] == shared
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(200) for _ in range(2))
    assert_same_parameters(parameters(first), parameters(second))
    assert_same_parameters(first.world_model.state_dict(), second.world_model.state_dict())


def test_another_seed_gives_another_run() -> None:
    first, second = (AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"seed": seed}).learn(64) for seed in (0, 1))
    assert any(not th.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True))


def test_imagination_leaves_the_global_random_streams_alone() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()[1].copy()
    imagination = model.imagination
    imagination.fit(2, 8, 1e-3)
    imagination.imagine_rows(NO_GUIDANCE, 32)
    model.imagine(model.env.reset())
    assert th.equal(th.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


class CallLog(gym.Wrapper):
    """
    Writes each call to a file.

    :param env: The environment
    :param file: The file
    """

    def __init__(self, env: gym.Env, file: Path):
        super().__init__(env)
        self.file = file

    def _write(self, call: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{call}\n")

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._write("reset")
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._write("step")
        return self.env.step(action)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5"])
def test_training_steps_the_environments_exactly_as_often_as_ppo(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    # A critic that explains nothing would not guide
    monkeypatch.setattr("sb3_agd.imagination.critic_trust.explained_variance", lambda *_: 1.0)
    n_steps = 12 * SMALL["n_steps"]
    calls = {}
    for algorithm, arguments in ((PPO, PPO_ARGUMENTS), (AGDPPO, SMALL)):
        file = tmp_path / algorithm.__name__
        model = algorithm("MlpPolicy", Monitor(CallLog(gym.make(env_id), file)), **arguments).learn(n_steps)
        calls[algorithm] = file.read_text().split()
        episodes = model.env.get_attr("episode_lengths")[0]
        assert calls[algorithm].count("reset") == len(episodes) + 1
    assert model.rollout_buffer.n_imagined > 0
    assert {algorithm: lines.count("step") for algorithm, lines in calls.items()} == {PPO: n_steps, AGDPPO: n_steps}


def test_imagination_does_not_change_what_the_environment_returns() -> None:
    """The first actions and observations come before any update: they must not depend on imagination."""

    class FirstRollout(BaseCallback):
        observations: np.ndarray

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps == SMALL["n_steps"]:
                self.observations = self.model.rollout_buffer.observations.copy()

    seen = []
    for arguments in (SMALL, SMALL | {"synthetic_ratio": 0}):
        callback = FirstRollout()
        AGDPPO("MlpPolicy", "Pendulum-v1", **arguments).learn(64, callback)
        seen.append(callback.observations)
    assert np.array_equal(*seen)


def assert_has_trained_with_imagination(model: AGDPPO) -> None:
    assert model.rollout_buffer.n_imagined > 0
    assert model._n_updates > 0 and model.world_model.n_updates > 0
    assert all(th.isfinite(value).all() for value in model.policy.parameters())


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv),
        lambda: VecNormalize(make_vec_env("Pendulum-v1", 2)),
        lambda: VecNormalize(make_vec_env("Pendulum-v1", 2), norm_obs=False),
        lambda: VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1", 2)), 3),
    ],
    ids=["subprocesses", "normalised", "rewards-normalised", "stacked"],
)
def test_trains_in_vectorised_environments(make_env: Callable[[], VecEnv]) -> None:
    env = make_env()
    model = AGDPPO("MlpPolicy", env, **SMALL | {"real_steps_per_update": 64}).learn(200)
    assert model.rollout_buffer.n_imagined == 2 * 32 * 2
    assert all(th.isfinite(value).all() for value in model.policy.parameters())
    env.close()


@pytest.mark.parametrize(
    "policy_kwargs",
    [{"net_arch": {"pi": [8], "vf": [16]}}, {"activation_fn": th.nn.ReLU, "log_std_init": -2.0, "ortho_init": False}],
)
def test_trains_with_custom_policy_arguments(policy_kwargs: dict[str, Any]) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"policy_kwargs": policy_kwargs}).learn(96)
    assert_has_trained_with_imagination(model)


def test_trains_with_a_custom_policy_class() -> None:
    class CustomPolicy(ActorCriticPolicy):
        pass

    assert_has_trained_with_imagination(AGDPPO(CustomPolicy, "CartPole-v1", **SMALL).learn(96))


def test_trains_with_actions_in_double_precision() -> None:
    action_space = spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), dtype=np.float64)
    assert_has_trained_with_imagination(AGDPPO("MlpPolicy", ToyEnv(action_space=action_space), **SMALL).learn(96))


def test_collects_a_rollout_with_a_callback_that_was_only_initialised() -> None:
    model = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL)
    _, callback = model._setup_learn(100)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert model.rollout_buffer.n_imagined > 0


@pytest.mark.parametrize("squash_output", [False, True])
def test_trains_with_gsde(squash_output: bool) -> None:
    policy_kwargs = {"net_arch": [16], "squash_output": squash_output}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", use_sde=True, **SMALL | {"policy_kwargs": policy_kwargs}).learn(100)
    assert model.rollout_buffer.n_imagined > 0


def test_user_callbacks_of_every_kind_are_called(tmp_path: Path) -> None:
    calls = []

    def function(local_variables: dict, global_variables: dict) -> bool:
        calls.append(local_variables["self"].num_timesteps)
        return True

    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(64, function)
    assert len(calls) == 64
    evaluation = EvalCallback(gym.make("Pendulum-v1"), eval_freq=40, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
    checkpoint = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True)
    model.learn(64, [evaluation, checkpoint])
    assert len(evaluation.evaluations_timesteps) == 1
    assert (tmp_path / "rl_model_50_steps.zip").exists()
    assert (tmp_path / "rl_model_replay_buffer_50_steps.pkl").exists()


def test_a_callback_can_stop_the_training() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.learn(500, lambda local_variables, _: local_variables["self"].num_timesteps < 70)
    assert model.num_timesteps == 70
    model.learn(64)
    assert model.num_timesteps == 64


def test_counts_real_steps_only_and_goes_on_counting() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    assert model.num_timesteps == 64
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    assert len(model.replay_buffer) == 128


def test_goes_on_in_another_environment() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.set_env(make_vec_env("Pendulum-v1", seed=7))
    model.learn(64)
    assert_has_trained_with_imagination(model)
    assert len(model.replay_buffer) == 128
    # No segment goes on from the one environment into the other
    last = model.replay_buffer.segments(np.array([0]), np.array([63]), 4)
    assert last.mask.tolist() == [[True, False, False, False]]


def test_settings_changed_between_two_learns_take_effect() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.synthetic_ratio = 4.0
    model.learn(64)
    assert model.rollout_buffer.n_imagined == 4 * 32


@pytest.mark.parametrize("n_steps, batch_size", [(1, 1), (5, 3)])
def test_tiny_rollouts_train(n_steps: int, batch_size: int) -> None:
    arguments = SMALL | {"n_steps": n_steps, "batch_size": batch_size, "normalize_advantage": n_steps > 1}
    arguments |= {"real_steps_per_update": n_steps}
    assert_has_trained_with_imagination(AGDPPO("MlpPolicy", ToyEnv(), **arguments).learn(15))


def test_logs_to_tensorboard_and_shows_progress(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", tensorboard_log=str(tmp_path), **SMALL)
    model.learn(64, progress_bar=True)
    assert list(tmp_path.glob("AGDPPO_1/events*"))
    # One line, as long as nobody watches it
    assert capfd.readouterr().out.count("64/64") == 1

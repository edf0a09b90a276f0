"""Dict observations of vectors, as robotics tasks have them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_agd import AGDPPO, AugmentedDictRolloutBuffer, AugmentedRolloutBuffer, GuidanceCallback

GOAL_SPACE = spaces.Dict(
    {
        "observation": spaces.Box(-np.inf, np.inf, (6,), dtype=np.float64),
        "achieved_goal": spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64),
        "desired_goal": spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64),
    }
)
MIXED_SPACE = spaces.Dict(
    {
        "matrix": spaces.Box(-1, 1, (2, 3)),
        "mode": spaces.Discrete(4),
        "modes": spaces.MultiDiscrete([2, 3]),
        "switches": spaces.MultiBinary(3),
        "counts": spaces.Box(0, 9, (2,), dtype=np.int64),
    }
)


class Reach(gym.Env):
    """A gripper that moves towards a goal, with the observations of Gymnasium's FetchReach."""

    observation_space = GOAL_SPACE
    action_space = spaces.Box(-1, 1, (3,))

    def _observation(self) -> dict[str, np.ndarray]:
        state = np.concatenate([self.position, self.velocity])
        return {"observation": state, "achieved_goal": self.position.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        super().reset(seed=seed)
        self.position, self.velocity, self.n_steps = 10 + self.np_random.normal(size=3), np.zeros(3), 0
        self.goal = 10 + self.np_random.normal(size=3)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        self.velocity = 0.1 * np.asarray(action, dtype=np.float64)
        self.position = self.position + self.velocity
        self.n_steps += 1
        distance = float(np.linalg.norm(self.position - self.goal))
        return self._observation(), -distance, False, self.n_steps >= 10, {}


def normalized() -> VecNormalize:
    return VecNormalize(DummyVecEnv([Reach]), norm_obs_keys=["observation", "achieved_goal"], clip_obs=1.5)


@pytest.mark.parametrize("make_env", [Reach, normalized], ids=["raw", "VecNormalize"])
def test_a_robotics_task_trains_on_imagined_dict_observations(make_env: Any) -> None:
    model = AGDPPO("MultiInputPolicy", make_env(), **SMALL).learn(96)
    imagined = model.rollout_buffer.imagined
    assert imagined is not None and model.rollout_buffer.n_imagined > 0
    assert isinstance(imagined.observations, dict)
    assert {key: part.shape[1:] for key, part in imagined.observations.items()} == {
        key: space.shape for key, space in GOAL_SPACE.items()
    }
    # In raw units, whole episodes: the position moves by the velocity, and is the achieved goal
    transitions = model.replay_buffer.segments(*model.replay_buffer.recent_transitions(1000), horizon=1)
    parts = model.imagination.observation_codec.shaped(transitions.observations[:, 1])
    before = model.imagination.observation_codec.shaped(transitions.observations[:, 0])
    assert len(transitions) == 96
    if make_env is Reach:
        assert th.equal(parts["achieved_goal"], parts["observation"][:, :3])
    th.testing.assert_close(before["desired_goal"], parts["desired_goal"])
    moved = parts["observation"][:, :3] - before["observation"][:, :3]
    # VecNormalize clips the last states of episodes, and only these
    clipped = (moved - parts["observation"][:, 3:]).abs().amax(1) > 1e-4
    assert clipped.sum() <= (0 if make_env is Reach else len(transitions) // 10 + 1)


def test_policy_observations_are_those_of_vec_normalize() -> None:
    env = normalized()
    model = AGDPPO("MultiInputPolicy", env, **SMALL).learn(64)
    raw = env.get_original_obs()
    raw["observation"] = np.concatenate([raw["observation"], raw["observation"] + 100])
    raw["achieved_goal"] = np.concatenate([raw["achieved_goal"]] * 2)
    raw["desired_goal"] = np.concatenate([raw["desired_goal"], raw["desired_goal"] + 100])
    vectors = th.from_numpy(model.imagination.observation_codec.encode(raw))
    seen, expected = model.imagination.agent.policy_observations(vectors), env.normalize_obs(raw)
    assert seen.keys() == expected.keys()
    for key, part in expected.items():
        np.testing.assert_allclose(seen[key].numpy(), part, rtol=1e-4, atol=1e-4)
    # Only normalised parts are clipped
    assert seen["observation"].abs().max() == 1.5 and seen["desired_goal"].abs().max() > 100


@pytest.mark.parametrize("guidance_mode", ["select", "gradient"])
def test_parts_of_all_kinds_reach_the_policy_and_the_critic(guidance_mode: str) -> None:
    model = AGDPPO("MultiInputPolicy", ToyEnv(MIXED_SPACE), guidance_mode=guidance_mode, **SMALL).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    for key, part in model.rollout_buffer.imagined.observations.items():
        for element in part.numpy().reshape(len(part), *MIXED_SPACE[key].shape):
            assert MIXED_SPACE[key].contains(element.astype(MIXED_SPACE[key].dtype)[()]) or key == "matrix"
    # The critic is the same with gradients, where vectors need not be one-hot, and without
    vectors = model.replay_buffer.observations[0, :20]
    with th.no_grad():
        expected = model.imagination.agent.values(th.from_numpy(vectors))
    leaf = th.from_numpy(vectors.copy()).requires_grad_()
    values = model.imagination.agent.values(leaf)
    th.testing.assert_close(values, expected)
    values.sum().backward()
    assert (leaf.grad != 0).any(0).all()


def test_imagine_takes_dict_observations() -> None:
    model = AGDPPO("MultiInputPolicy", ToyEnv(MIXED_SPACE), **SMALL).learn(64)
    MIXED_SPACE.seed(0)
    samples = [MIXED_SPACE.sample() for _ in range(3)]
    observations = {key: np.stack([sample[key] for sample in samples]) for key in MIXED_SPACE}
    segments = model.imagine(observations, seed=0)
    flat = np.concatenate([observations[key].reshape(3, -1) for key in MIXED_SPACE], axis=1)
    assert segments.observations.shape == (3, SMALL["horizon"] + 1, flat.shape[1])
    assert np.array_equal(segments.observations[:, 0], flat)
    again = model.imagine(flat, seed=0)
    assert np.array_equal(segments.observations, again.observations)
    with pytest.raises(ValueError, match=r"must have the keys \['counts', 'matrix', 'mode', 'modes', 'switches'\]"):
        model.imagine({"matrix": observations["matrix"]})


def test_files_of_agents_with_dict_observations_can_be_loaded(tmp_path: Path) -> None:
    model = AGDPPO("MultiInputPolicy", normalized(), **SMALL).learn(64)
    model.save(tmp_path / "agent")
    loaded = AGDPPO.load(tmp_path / "agent")
    observations = {key: np.full((2, *space.shape), 10.0) for key, space in GOAL_SPACE.items()}
    assert np.array_equal(loaded.imagine(observations, seed=0).observations, model.imagine(observations, seed=0).observations)
    assert AGDPPO.load(tmp_path / "agent", normalized()).learn(64).rollout_buffer.n_imagined > 0


def test_other_algorithms_train_with_the_dict_buffer_and_are_told_of_it() -> None:
    callback = GuidanceCallback(horizon=4, world_model_warmup=0, world_model_gradient_steps=3, real_steps_per_update=32)
    kwargs: dict[str, Any] = {"n_steps": 32, "device": "cpu", "seed": 0}
    model = A2C("MultiInputPolicy", Reach(), rollout_buffer_class=AugmentedDictRolloutBuffer, **kwargs)
    model.learn(64, callback)
    assert model.rollout_buffer.n_imagined > 0
    with pytest.raises(ValueError, match="Dict observations need `AugmentedDictRolloutBuffer`"):
        A2C("MultiInputPolicy", Reach(), rollout_buffer_class=AugmentedRolloutBuffer, **kwargs)


def test_without_imagination_training_is_that_of_ppo() -> None:
    kwargs: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "device": "cpu", "seed": 0}
    first = PPO("MultiInputPolicy", Reach(), **kwargs).learn(64).policy.parameters()
    second = AGDPPO("MultiInputPolicy", Reach(), synthetic_ratio=0, **kwargs).learn(64).policy.parameters()
    assert all(th.equal(one, other) for one, other in zip(first, second, strict=True))


def test_images_within_a_dict_are_refused_by_name() -> None:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (16, 16, 3), dtype=np.uint8), "position": spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match=r"observation\[\"camera\"\] space .* is not supported.*Turn images"):
        AGDPPO("MultiInputPolicy", ToyEnv(space), **SMALL)

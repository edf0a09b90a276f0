"""AGDPPO as users see it: arguments, saving, refusals, and :meth:`imagine`."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import sb3_agd
from sb3_agd import AGDPPO
from sb3_agd.imagination import Imagination, Settings

WITH_FIGURES = ["ImaginationCallback", "imagination_report"]


def test_exports_the_public_names() -> None:
    assert set(sb3_agd.__all__) == {
        "AGDPPO",
        "AugmentedDictRolloutBuffer",
        "AugmentedRolloutBuffer",
        "DiffusionWorldModel",
        "ExponentialAdvantageGuide",
        "GuidanceCallback",
        "GuidanceGainCallback",
        "Guide",
        "ImaginationCallback",
        "ImaginedVecEnv",
        "ResumableCheckpointCallback",
        "RewardGuide",
        "Segments",
        "SigmoidAdvantageGuide",
        "__version__",
        "imagination_report",
    }
    assert all(getattr(sb3_agd, name) is not None for name in set(sb3_agd.__all__) - set(WITH_FIGURES))
    with pytest.raises(AttributeError, match="no attribute 'SAG'"):
        sb3_agd.SAG  # noqa: B018


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_what_draws_figures_is_exported_or_names_the_extra_that_it_needs(name: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ImportError, match=f"`{name}` needs the extra `zoo`"):
            getattr(sb3_agd, name)
    else:
        assert callable(getattr(sb3_agd, name))


def test_a_custom_network_is_used_and_saved(tmp_path: Path) -> None:
    class OneStepDenoiser(nn.Module):
        def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int, output: nn.Module, depth: int = 2):
            super().__init__()
            self.shape = (horizon, width, depth)
            self.output = output
            self.layer = nn.Linear(2 * observation_dim + 1 + action_dim, observation_dim + 1)

        def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
            start = start[:, None].expand(-1, noisy.shape[1], -1)
            return self.output(self.layer(th.cat([noisy, start, actions], dim=-1)))

    world_model_kwargs = {"network": OneStepDenoiser, "network_kwargs": {"width": 7, "output": nn.Identity()}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_kwargs": world_model_kwargs}).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.world_model.networks["denoiser"].shape == (SMALL["horizon"], 7, 2)
    starts = model.env.reset()
    assert np.array_equal(model.imagine(starts, seed=1).observations, loaded.imagine(starts, seed=1).observations)
    loaded.learn(64)
    assert loaded.world_model.n_updates > model.world_model.n_updates


@pytest.mark.parametrize("network", ["recurrent", "mlp"])
@pytest.mark.parametrize("guidance_mode", ["select", "gradient"])
def test_a_saved_model_denoises_terminations_as_before(tmp_path: Path, network: str, guidance_mode: str) -> None:
    kwargs = {"network": network, "network_kwargs": {"width": 16, "depth": 1}, "terminations": "denoised"}
    settings = SMALL | {"world_model_kwargs": kwargs, "guidance_mode": guidance_mode, "world_model_gradient_steps": 30}
    model = AGDPPO("MlpPolicy", "CartPole-v1", **settings).learn(128)
    assert model.rollout_buffer.n_imagined > 0
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.world_model.terminations == "denoised"
    starts = np.tile(model.env.reset(), (200, 1))
    before, after = (each.imagine(starts, seed=1) for each in (model, loaded))
    assert np.array_equal(before.observations, after.observations)
    assert np.array_equal(before.terminations, after.terminations)
    loaded.learn(32)


def test_a_rule_of_termination_beside_denoised_ones_is_refused_at_construction() -> None:
    kwargs = {"world_model_kwargs": {"terminations": "denoised"}, "termination_fn": lambda *rows: rows[0][:, 0] > 0}
    with pytest.raises(ValueError, match=r'`termination_fn` .* without `terminations="denoised"`'):
        AGDPPO("MlpPolicy", "CartPole-v1", **SMALL | kwargs)


def test_an_environment_to_evaluate_in_leaves_rewards_in_the_units_of_the_critic() -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL).learn(128)
    rewards = th.tensor([-8.0, -1.0])
    expected = model.imagination.agent.rewards(rewards)
    assert expected[0] > -8
    model.env.training = model.env.norm_reward = False
    assert th.equal(model.imagination.agent.rewards(rewards), expected)
    # Training with raw rewards is another matter
    model.learn(64, reset_num_timesteps=False)
    assert th.equal(model.imagination.agent.rewards(rewards), rewards)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy", "CnnPolicy"])
@pytest.mark.parametrize(
    "space, advice",
    [
        (spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8), "CnnPolicy"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)}), "CnnPolicy"),
    ],
    ids=["image", "dict"],
)
def test_images_are_refused_at_construction(policy: str, space: spaces.Space, advice: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)observation.* space.*{advice}"):
        AGDPPO(policy, ToyEnv(space))


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(4)], ids=["box", "discrete"])
def test_the_policy_for_dict_observations_is_refused_for_others(space: spaces.Space) -> None:
    with pytest.raises(
        ValueError, match=f"must use `MlpPolicy`.*{type(space).__name__} observation space, not MultiInputPolicy"
    ):
        AGDPPO("MultiInputPolicy", ToyEnv(space), **SMALL)
    # An extractor of one's own may take them
    policy_kwargs = {"net_arch": [16], "features_extractor_class": FlattenExtractor}
    AGDPPO("MultiInputPolicy", ToyEnv(space), **SMALL | {"policy_kwargs": policy_kwargs}).learn(32)


def test_discrete_spaces_that_do_not_begin_with_zero_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"observation space.*begin with 0"):
        AGDPPO("MlpPolicy", ToyEnv(spaces.Discrete(3, start=1)))


def test_a_device_without_double_precision_is_refused() -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    model.device = th.device("mps")
    with pytest.raises(ValueError, match='MPS does not have: give `device="cpu"`'):
        Imagination(model, Settings())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("episode_length", [1, 3, 50])
def test_any_scale_and_short_episodes_and_constant_dimensions_train(scale: float, episode_length: int) -> None:
    rng = np.random.default_rng(0)

    def observe(step: int) -> np.ndarray:
        return np.array([scale * rng.normal(), 7.0, scale * step], dtype=np.float32)

    env = ToyEnv(
        spaces.Box(-np.inf, np.inf, (3,)),
        observe=observe,
        episode_length=episode_length,
        terminates=True,
        reward=lambda step: scale * rng.normal(),
    )
    model = AGDPPO("MlpPolicy", env, **SMALL | {"n_steps": 30}).learn(120)
    assert model.rollout_buffer.n_imagined > 0
    for parameter in (*model.policy.parameters(), *model.world_model.parameters()):
        assert th.isfinite(parameter).all()
    segments = model.imagine(np.array([[0.0, 7.0, 0.0]]))
    assert np.allclose(segments.observations[..., 1], 7.0)
    assert np.isfinite(segments.observations).all()


def test_a_run_without_a_seed_repeats_what_global_seeds_repeat() -> None:
    def run(seed: int) -> AGDPPO:
        set_random_seed(seed)
        model = AGDPPO("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), **SMALL | {"seed": None})
        return model.learn(96)

    first, second, other = run(0), run(0), run(1)
    for name in ("policy", "world_model"):
        ours, theirs = (list(getattr(model, name).parameters()) for model in (first, second))
        assert all(th.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert not th.equal(
        first.world_model.networks["denoiser"].state.weight, other.world_model.networks["denoiser"].state.weight
    )


@pytest.mark.parametrize("synthetic_ratio", [0, 1.0, lambda progress_remaining: progress_remaining])
@pytest.mark.parametrize("batch_size, fits, fits_real_rows_alone", [(16, True, True), (64, True, False), (48, False, False)])
def test_sb3s_advice_on_minibatches_is_given_unless_imagined_rows_fill_them(
    synthetic_ratio: Any, batch_size: int, fits: bool, fits_real_rows_alone: bool
) -> None:
    arguments = SMALL | {"n_steps": 32, "batch_size": batch_size, "synthetic_ratio": synthetic_ratio}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AGDPPO("MlpPolicy", "Pendulum-v1", **arguments)
    advised = any("You have specified a mini-batch size" in str(warning.message) for warning in caught)
    assert advised != (fits_real_rows_alone if synthetic_ratio == 0 else fits)


def test_warnings_can_be_turned_into_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="truncated mini-batch of size 1"):
            AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_steps": 64, "batch_size": 63})


def test_the_settings_of_the_paper_train() -> None:
    paper = {
        "sampler": "ddpm",
        "n_denoising_steps": 128,
        "horizon": 10,
        # Full width is left to the tests of the world model
        "world_model_kwargs": {"network": "mlp", "network_kwargs": {"width": 64, "depth": 6}},
        "world_model_gradient_steps": 1,
        "world_model_batch_size": 8,
        "synthetic_ratio": 1.0,
        "guidance": "sag",
        "guidance_scale": 3.0,
        "guidance_mode": "gradient",
    }
    # Rewards of both signs: values near zero are within their bounds, beyond which they have no slope
    env = ToyEnv(reward=lambda step: (-1.0) ** step)
    model = AGDPPO("MlpPolicy", env, **SMALL | paper).learn(64)
    assert model.rollout_buffer.n_imagined == 32
    # The critic explains too little for a guidance of any strength in training
    model.imagine(model.env.reset(), guidance_scale=3.0)
    assert model.world_model.guidance_norm > 0
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())

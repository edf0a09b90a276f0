"""AGDPPO as users see it: arguments, saving, refusals, and :meth:`imagine`."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

import sb3_agd
from sb3_agd import (
    AGDPPO,
    ExponentialAdvantageGuide,
    SigmoidAdvantageGuide,
)
from sb3_agd.imagination import Guidance, Imagination, Settings


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
        "ResumableCheckpointCallback",
        "RewardGuide",
        "Segments",
        "SigmoidAdvantageGuide",
        "__version__",
        "imagination_report",
    }
    assert all(getattr(sb3_agd, name) is not None for name in sb3_agd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SAG'"):
        sb3_agd.SAG  # noqa: B018


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


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_a_loaded_model_predicts_and_imagines_identically_and_goes_on_learning(env_id: str, tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", env_id, **SMALL).learn(100)
    starts = model.env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
        loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert np.array_equal(model.predict(starts, deterministic=True)[0], loaded.predict(starts, deterministic=True)[0])
    # With a seed, and going on with the private stream
    for seed in (5, None):
        first, second = model.imagine(starts, seed=seed), loaded.imagine(starts, seed=seed)
        assert np.array_equal(first.observations, second.observations)
        assert np.array_equal(first.actions, second.actions)
    first_state, second_state = (m.world_model.optimizer.state_dict()["state"] for m in (model, loaded))
    assert all(th.equal(first_state[i]["exp_avg"], second_state[i]["exp_avg"]) for i in first_state)
    loaded.learn(100)
    assert loaded.world_model.n_updates > model.world_model.n_updates


def test_a_custom_network_is_used_and_saved(tmp_path: Path) -> None:
    class OneStepDenoiser(nn.Module):
        def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int, depth: int = 2):
            super().__init__()
            self.shape = (horizon, width, depth)
            self.layer = nn.Linear(2 * observation_dim + 1 + action_dim, observation_dim + 1)

        def forward(self, noisy: th.Tensor, time: th.Tensor, start: th.Tensor, actions: th.Tensor) -> th.Tensor:
            start = start[:, None].expand(-1, noisy.shape[1], -1)
            return self.layer(th.cat([noisy, start, actions], dim=-1))

    world_model_kwargs = {"network": OneStepDenoiser, "network_kwargs": {"width": 7}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_kwargs": world_model_kwargs}).learn(64)
    assert model.rollout_buffer.n_imagined > 0
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.world_model.networks["denoiser"].shape == (SMALL["horizon"], 7, 2)
    starts = model.env.reset()
    assert np.array_equal(model.imagine(starts, seed=1).observations, loaded.imagine(starts, seed=1).observations)
    loaded.learn(64)
    assert loaded.world_model.n_updates > model.world_model.n_updates


def test_parameters_of_a_file_bring_a_trained_world_model(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "model")
    other = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 1000})
    other.set_parameters(tmp_path / "model")
    other.learn(32)
    assert other.rollout_buffer.n_imagined > 0 and other.world_model.n_updates == model.world_model.n_updates


def test_a_model_loads_without_an_environment(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", guidance=ExponentialAdvantageGuide(), **SMALL).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    assert loaded.imagine(np.zeros((2, 3))).rewards.shape == (2, SMALL["horizon"])


def test_a_model_loaded_without_environment_imagines_with_the_normalisation_it_was_trained_with(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SMALL).learn(128)
    model.save(tmp_path / "model")
    starts = np.array([[1.0, 0.0, 2.0]])
    expected = model.imagine(starts, guidance="eag", seed=1)
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    loaded.save(tmp_path / "again")
    segments = AGDPPO.load(tmp_path / "again", device="cpu").imagine(starts, guidance="eag", seed=1)
    assert np.array_equal(segments.observations, expected.observations)
    assert np.array_equal(segments.actions, expected.actions)


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


def test_transitions_are_saved_and_loaded(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "folder" / "transitions")
    loaded = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    loaded.load_replay_buffer(tmp_path / "folder" / "transitions")
    assert len(loaded.replay_buffer) == 64
    assert np.array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)
    loaded.learn(64)
    assert len(loaded.replay_buffer) == 128


def test_a_corrupt_file_of_transitions_is_named_and_changes_nothing(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save_replay_buffer(tmp_path / "good.npz")
    content = (tmp_path / "good.npz").read_bytes()
    for name, damaged in (("truncated.npz", content[: len(content) // 2]), ("text.npz", b"text"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            model.load_replay_buffer(tmp_path / name)
    assert len(model.replay_buffer) == 64
    other = AGDPPO("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="observation dimensions is 3, here it is 4"):
        other.load_replay_buffer(tmp_path / "good.npz")


def test_warm_starts_from_a_ppo_file(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=SMALL["policy_kwargs"], n_steps=32, device="cpu").learn(32)
    ppo.save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="set_parameters"):
        AGDPPO.load(tmp_path / "ppo")
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    model.set_parameters(tmp_path / "ppo", exact_match=False)
    assert all(th.equal(a, b) for a, b in zip(ppo.policy.parameters(), model.policy.parameters(), strict=True))
    # The other way round
    model.learn(64).save(tmp_path / "agdppo")
    with pytest.raises(Exception, match="world_model"):
        PPO.load(tmp_path / "agdppo")
    ppo.policy.load_state_dict(model.policy.state_dict())


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


def test_a_file_that_is_saved_again_has_the_present_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "old")
    monkeypatch.setattr("sb3_agd.checkpoint.resumable_ppo.FILE_FORMAT", 2)
    AGDPPO.load(tmp_path / "old").save(tmp_path / "new")
    data, _, _ = load_from_zip_file(tmp_path / "new")
    assert data["file_format"] == 2


def test_imagine_refuses_an_empty_batch() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    with pytest.raises(ValueError, match="`observations` must hold at least one start state"):
        model.imagine(np.zeros((0, 3)))


def test_a_model_loaded_without_transitions_imagines_but_does_not_fit_on_a_handful(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"world_model_warmup": 64}).learn(64)
    model.save(tmp_path / "model")
    loaded = AGDPPO.load(tmp_path / "model", env=model.env, device="cpu")
    n_updates = loaded.world_model.n_updates.item()
    loaded.learn(32)
    assert loaded.rollout_buffer.n_imagined == 64 and loaded.world_model.n_updates == n_updates
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.world_model.n_updates == n_updates + 3


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
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | paper).learn(64)
    assert model.rollout_buffer.n_imagined == 32
    # After two rollouts none of the critic's values is credible, and bounded values have no slope
    model.imagination.state.value_range = (-math.inf, math.inf)
    model.imagination.imagine_rows(Guidance(SigmoidAdvantageGuide(), "gradient", 3.0), 32)
    assert model.world_model.guidance_norm > 0
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


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


def test_rounds_end_where_the_world_model_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fits = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"real_steps_per_update": 8}), []
    fit = model.imagination.fit

    def diverging(*arguments: Any) -> dict[str, float]:
        fits.append(arguments)
        if len(fits) == 3:
            raise FloatingPointError("It has diverged")
        return fit(*arguments)

    monkeypatch.setattr(model.imagination, "fit", diverging)
    with pytest.warns(UserWarning, match="It has diverged"):
        model.learn(32)
    assert len(fits) == 3 and model._n_updates == 2 * SMALL["n_epochs"]


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

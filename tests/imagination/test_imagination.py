"""What is imagined, from where, under which guidance, and what the rollout buffer gets of it."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, SPACES, ToyEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecNormalize
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_agd import (
    AGDPPO,
    DiffusionWorldModel,
    Guide,
    SigmoidAdvantageGuide,
)
from sb3_agd.imagination import NO_GUIDANCE, Critic, Guidance
from sb3_agd.imagination.start_states import states_along
from sb3_agd.world_model import Segments
from sb3_agd.world_model.segments import mask_after_termination


@pytest.mark.parametrize("observation_space", SPACES, ids=str)
def test_imagines_in_raw_units_for_every_observation_space(observation_space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(observation_space), **SMALL).learn(64)
    starts = np.stack([observation_space.sample() for _ in range(5)])
    segments = model.imagine(starts, seed=0)
    dim = int(np.prod(starts.shape[1:]))
    assert segments.observations.shape == (5, SMALL["horizon"] + 1, dim)
    assert np.array_equal(segments.observations[:, 0], starts.reshape(5, dim))
    assert segments.actions.shape == (5, SMALL["horizon"], 2)
    for array in (segments.rewards, segments.terminations, segments.mask):
        assert array.shape == (5, SMALL["horizon"])
    for observation in segments.observations.reshape(-1, *observation_space.shape):
        if not isinstance(observation_space, spaces.Box):
            assert observation_space.contains(observation.astype(observation_space.dtype))


def test_imagination_with_a_seed_repeats_itself_and_without_does_not() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    starts = model.env.reset()
    first, second, third = model.imagine(starts, seed=3), model.imagine(starts, seed=3), model.imagine(starts)
    assert np.array_equal(first.observations, second.observations) and np.array_equal(first.actions, second.actions)
    assert not np.array_equal(first.actions, third.actions)


@pytest.mark.parametrize("guidance", ["sag", "eag", "reward"])
def test_guidance_moves_the_imagined_states_but_never_the_start(guidance: str) -> None:
    model = AGDPPO(
        "MlpPolicy", "Pendulum-v1", **SMALL | {"n_denoising_steps": 4, "guidance_mode": "gradient", "learning_rate": 1e-2}
    ).learn(400)
    starts = np.repeat(model.env.reset(), 20, axis=0)
    free = model.imagine(starts, guidance="none", seed=0)
    unmoved = model.imagine(starts, guidance=guidance, guidance_scale=0.0, seed=0)
    guided = model.imagine(starts, guidance=guidance, guidance_scale=3.0, seed=0)
    assert np.array_equal(free.observations, unmoved.observations)
    assert model.world_model.guidance_norm > 0
    assert not np.array_equal(free.observations, guided.observations)
    assert np.array_equal(guided.observations[:, 0], starts)


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_a_custom_guide_is_used(guidance_mode: str) -> None:
    class FirstDimension(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return segments.observations[..., 0].sum(1)

    # Unpredictable observations: there is something to choose from
    arguments = SMALL | {"world_model_gradient_steps": 100, "n_denoising_steps": 8}
    arguments |= {"n_candidates": 16, "guidance_mode": guidance_mode}
    model = AGDPPO("MlpPolicy", ToyEnv(), guidance=FirstDimension(), **arguments).learn(64)
    starts = np.zeros((200, 3), dtype=np.float32)
    guided = model.imagine(starts, guidance_scale=10.0, seed=0).observations[:, 1:, 0].mean()
    assert guided > 0.1 + model.imagine(starts, guidance="none", seed=0).observations[:, 1:, 0].mean()


class FewTerminations(Guide):
    """Whole numbers, as users may write them."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return -segments.terminations.sum(1)


class EachStep(Guide):
    """Forgets to sum."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return critic.advantages(segments)


def test_an_objective_of_integers_is_accepted() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(terminates=True), guidance=FewTerminations(), **SMALL).learn(64)
    model.imagination.imagine_rows(Guidance(FewTerminations(), "select", 1.0, 4), 64)
    starts = np.zeros((500, 3))
    ends = [model.imagine(starts, guidance_scale=scale, seed=0).terminations.mean() for scale in (0.0, 10.0)]
    assert ends[1] < ends[0]


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_an_objective_of_the_wrong_shape_is_refused(guidance_mode: str) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"guidance_mode": guidance_mode}).learn(64)
    with pytest.raises(ValueError, match=r"objective of EachStep must have one number per segment, shape \(\d+,\), not"):
        model.imagine(np.zeros((2, 3)), EachStep(), 1.0)


class SumOfActions(Guide):
    """Prefers segments for their actions."""

    def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
        return segments.actions.sum((1, 2))


def test_the_policy_learns_from_its_own_actions_also_under_guidance() -> None:
    """Learned from, the actions of chosen segments would raise the noise of the policy and the values of the critic."""
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    imagination, n_rows = model.imagination, 4000
    guidance = Guidance(SumOfActions(), "select", 3.0, 4)

    def mean_noise(observations: th.Tensor, actions: th.Tensor) -> float:
        with th.no_grad():
            distribution = model.policy.get_distribution(observations).distribution
        return ((actions - distribution.mean) / distribution.stddev).mean().item()

    rows, _ = imagination.imagine_rows(guidance, n_rows)
    assert abs(mean_noise(rows.observations, rows.actions)) < 5 / np.sqrt(n_rows)
    # The guide was strong enough to be seen
    starts = th.zeros(n_rows // SMALL["horizon"], 3)
    chosen, actions = imagination.imagine(starts, guidance, imagination.generator(0))
    assert mean_noise(chosen.observations[:, :-1].flatten(0, 1), actions.flatten(0, 1)) > 0.3


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_imagination_goes_on_from_selected_segments_only(guidance_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    imagination, calls = model.imagination, []
    imagine = imagination.imagine

    def recorded(starts: th.Tensor, guidance: Guidance, generator: th.Generator) -> Any:
        segments, actions = imagine(starts, guidance, generator)
        calls.append((starts, guidance.guide, segments))
        return segments, actions

    monkeypatch.setattr(imagination, "imagine", recorded)
    guidance = Guidance(SigmoidAdvantageGuide(), guidance_mode, 1.0, 4)
    imagination.imagine_rows(guidance, 2000)
    assert [guide is None for _, guide, _ in calls] == ([False] if guidance_mode == "gradient" else [False, True])
    if guidance_mode == "select":
        chosen, (starts, *_) = calls[0][2].observations, calls[1]
        same = (chosen == starts[:, None]).all(2)
        # One of each segment, from the first to the last, and as often from each step
        assert same.any(1).all()
        shares = same.float().mean(0)
        assert (shares - 1 / same.shape[1]).abs().max() < 5 * np.sqrt(0.25 / len(same))
    # Without strength there is no guidance, and no second imagination
    calls.clear()
    imagination.imagine_rows(replace(guidance, scale=0.0), 16)
    assert len(calls) == 1


def test_imagination_does_not_go_on_from_the_end_of_an_episode() -> None:
    terminations = th.tensor([[False, True, False], [False, False, True], [True, False, False], [False, False, False]])
    steps = th.arange(4.0).expand(4, 4)[..., None]
    segments = Segments(steps, th.zeros(4, 3, 1), th.zeros(4, 3), terminations, mask_after_termination(terminations))
    generator = th.Generator().manual_seed(0)
    drawn = th.stack([states_along(segments, generator) for _ in range(200)]).squeeze(2)
    for index, last in enumerate([1, 2, 0, 3]):
        assert set(drawn[:, index].tolist()) == set(range(last + 1))


class NoWaiting(TorchDispatchMode):
    """Fails where a number is read out of a tensor, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # The schedule of the sampler is made on the CPU, in double precision
        if func is th.ops.aten._local_scalar_dense.default and args[0].dtype is not th.float64:
            raise AssertionError("A number was read out of a tensor")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), *SPACES[3:]], ids=str)
@pytest.mark.parametrize("sampler", ["flow", "ddpm"])
def test_sampling_does_not_wait_for_results(
    sampler: str, action_space: spaces.Space, guidance_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(action_space=action_space), sampler=sampler, **SMALL).learn(64)
    imagine, calls = DiffusionWorldModel.imagine, []

    def strict(*arguments: Any) -> Any:
        with NoWaiting():
            calls.append(imagine(*arguments))
        return calls[-1]

    monkeypatch.setattr(DiffusionWorldModel, "imagine", strict)
    imagination = model.imagination
    imagination.imagine(th.zeros(8, 3), Guidance(SigmoidAdvantageGuide(), guidance_mode, 1.0, 4), imagination.generator(0))
    assert len(calls) == 1


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_imagined_rows_hold_what_policy_and_critic_say(env_id: str) -> None:
    model = AGDPPO("MlpPolicy", VecNormalize(make_vec_env(env_id)), **SMALL).learn(64)
    rows, _ = model.imagination.imagine_rows(NO_GUIDANCE, 64)
    actions = rows.actions.long().flatten() if env_id == "CartPole-v1" else rows.actions
    values, log_probs, _ = model.policy.evaluate_actions(rows.observations, actions)
    assert th.allclose(rows.old_values, values.flatten(), atol=1e-5)
    assert th.allclose(rows.old_log_prob, log_probs, atol=1e-5)
    low, high = model.imagination.state.value_range
    bounded = rows.old_values.clamp(low, high)
    assert th.allclose(rows.returns, (rows.advantages + bounded).clamp(low, high), atol=1e-5)
    # They differ, so that there is something to learn
    assert rows.advantages.std() > 0 and log_probs.std() > 0


def test_the_explained_variance_of_the_critic_is_that_of_the_newest_rollout() -> None:
    settings = {"synthetic_ratio": 0.0, "gamma": 0.5, "n_epochs": 20, "n_steps": 256}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | settings)
    explained = []

    class Explained(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            explained.append(explained_variance(buffer.values.flatten(), buffer.returns.flatten()))

    for _ in range(5):
        model.learn(256, Explained(), reset_num_timesteps=False)
        assert model.imagination.state.critic_explained_variance == pytest.approx(max(explained[-1], 0), abs=1e-6)
    assert model.imagination.state.critic_explained_variance > 0


def test_imagination_starts_from_recent_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_agd.imagination.start_states.RECENT_ROWS", 16)
    numbers = itertools.count()
    env = ToyEnv(spaces.Box(0, 1e3, (1,)), episode_length=1000, observe=lambda _: np.array([next(numbers)], dtype=np.float32))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    starts: list[th.Tensor] = []
    imagine = model.imagination.imagine
    monkeypatch.setattr(model.imagination, "imagine", lambda first, *rest: starts.append(first) or imagine(first, *rest))
    model.imagination.imagine_rows(NO_GUIDANCE, 400)
    assert set(starts[0].flatten().tolist()) == set(range(48, 64))


def test_candidates_raise_the_objective_and_stay_on_the_model() -> None:
    class FirstDimension(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return 10 * segments.observations[:, 1:, 0].sum(1)

    arguments = SMALL | {"world_model_gradient_steps": 100, "policy_kwargs": {"log_std_init": 0.0}}
    model = AGDPPO("MlpPolicy", "Pendulum-v1", n_candidates=8, guidance=FirstDimension(), **arguments).learn(64)
    starts = np.tile(model.replay_buffer.observations[0, 20:50], (10, 1))
    chosen, drawn = (model.imagine(starts, guidance_scale=scale, seed=0) for scale in (3.0, 0.0))
    assert chosen.observations.shape == drawn.observations.shape == (300, SMALL["horizon"] + 1, 3)
    gains = (chosen.observations - drawn.observations)[:, 1:, 0].mean(1)
    assert gains.mean() > 3 * gains.std() / np.sqrt(300)
    # Nothing was moved: the model makes the same states of the same actions, up to its own noise
    imagination = model.imagination
    states = th.as_tensor(chosen.observations)
    actions = th.as_tensor(chosen.actions)
    again = model.world_model.imagine(states[:, 0], lambda _, steps: actions[:, steps], generator=imagination.generator(1))
    spread = model.world_model.imagine(states[:, 0], lambda _, steps: actions[:, steps], generator=imagination.generator(2))
    noise = (again.observations - spread.observations).square().mean().sqrt()
    assert (again.observations - states).square().mean().sqrt() < 1.5 * noise


@pytest.mark.parametrize("guidance_mode", ["gradient", "select"])
def test_segments_on_which_the_critic_is_not_a_number_are_left_out(guidance_mode: str) -> None:
    class Partial(th.nn.Module):
        def __init__(self, whole: th.nn.Module):
            super().__init__()
            self.whole = whole

        def forward(self, latent: th.Tensor) -> th.Tensor:
            return self.whole(latent).where(latent[:, :1] < 0, th.nan)

    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    model.policy.value_net = Partial(model.policy.value_net)
    rows, _ = model.imagination.imagine_rows(Guidance(SigmoidAdvantageGuide(), guidance_mode, 1.0, 4), 64)
    assert 0 < len(rows.returns) < 64
    for name in ("old_values", "old_log_prob", "advantages", "returns"):
        assert getattr(rows, name).isfinite().all(), name


def test_gradient_guidance_without_a_gradient_is_refused() -> None:
    class SmallActions(Guide):
        def objective(self, segments: Segments[th.Tensor], critic: Critic) -> th.Tensor:
            return -segments.actions.square().sum((1, 2))

    model = AGDPPO("MlpPolicy", ToyEnv(), guidance=SmallActions(), **SMALL).learn(32)
    model.imagine(np.zeros((2, 3)), guidance_scale=1.0)
    model.guidance_mode = "gradient"
    with pytest.raises(ValueError, match=r'The objective depends on neither .* `guidance_mode="select"`'):
        model.imagine(np.zeros((2, 3)), guidance_scale=1.0)


def test_selected_segments_hold_their_own_actions() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", n_candidates=4, guidance="eag", **SMALL).learn(64)
    imagination = model.imagination
    starts = th.zeros(50, 3)
    segments, actions = imagination.imagine(
        starts, Guidance(SigmoidAdvantageGuide(), "select", 5.0, 4), imagination.generator(0)
    )
    # The environment receives the policy's actions, clipped
    assert th.equal(segments.actions, actions.clamp(-2, 2))


def test_guidance_is_scaled_by_what_the_critic_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"guidance_scale": 10.0, "gamma": 0.5, "n_epochs": 20})
    imagination, scales = model.imagination, []
    imagine_rows = imagination.imagine_rows

    def recorded(guidance: Guidance, n_rows: int) -> Any:
        scales.append((guidance.scale, imagination.state.critic_explained_variance))
        return imagine_rows(guidance, n_rows)

    monkeypatch.setattr(imagination, "imagine_rows", recorded)
    model.learn(160)
    assert len(scales) == 5 and len({explained for _, explained in scales}) > 2
    assert [scale for scale, _ in scales] == pytest.approx([10 * explained for _, explained in scales])


def test_the_world_model_is_tested_on_a_rollout_before_it_learns_it() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    order: list[str] = []
    for name in ("test", "fit"):
        method = getattr(model.imagination, name)
        setattr(model.imagination, name, lambda *args, name=name, method=method: order.append(name) or method(*args))
    model.learn(96)
    assert order == ["fit", "test", "fit", "test", "fit"]


def test_no_more_rows_are_imagined_than_asked_for() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    rows, _ = model.imagination.imagine_rows(NO_GUIDANCE, 63)
    assert len(rows.advantages) == 63


def test_every_real_transition_enters_the_statistics() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=1, terminates=True), **SMALL).learn(96)
    assert model.world_model.action_normalizer.count == 96
    assert model.world_model.n_terminations == 96


@pytest.mark.parametrize("stop", [10, 32 + 1, 50 + 1])
def test_steps_of_a_stopped_rollout_enter_the_statistics_and_join_the_next_one(stop: int) -> None:
    """SB3 forgets the observation of the step at which a callback stops the training, the first of an episode as well."""
    env = ToyEnv(observe=lambda step: np.full(3, step / 100, dtype=np.float32), episode_length=50)
    model = AGDPPO("MlpPolicy", env, **SMALL)
    model.learn(64, callback=lambda local_variables, _: model.num_timesteps < stop)
    model.learn(64, reset_num_timesteps=False)
    store = model.replay_buffer
    assert model.world_model.action_normalizer.count == len(store) == stop + 64
    env_indices, rows = store.recent_transitions(len(store))
    changes = store.observations[env_indices, rows + 1] - store.observations[env_indices, rows]
    assert np.allclose(changes, 0.01, atol=1e-5)


def test_transitions_loaded_into_a_new_model_enter_its_statistics_once(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(episode_length=3, terminates=True), **SMALL).learn(96)
    model.save_replay_buffer(tmp_path / "transitions")
    model.save(tmp_path / "model")
    new = AGDPPO("MlpPolicy", ToyEnv(episode_length=3, terminates=True), **SMALL)
    old = AGDPPO.load(tmp_path / "model", env=ToyEnv(episode_length=3, terminates=True), device="cpu")
    for other in (new, old):
        other.load_replay_buffer(tmp_path / "transitions")
        other.learn(32)
        assert other.world_model.action_normalizer.count == 96 + 32
        assert other.world_model.n_terminations == 32 + 10


def test_start_states_are_part_of_the_observed_range() -> None:
    """In tasks of one step, only they hold what matters."""
    space = spaces.Box(-1, 1, (3,))
    env = ToyEnv(space, episode_length=1, terminates=True, observe=lambda step: space.sample() if step == 0 else np.zeros(3))
    model = AGDPPO("MlpPolicy", env, **SMALL).learn(64)
    store, normalizer = model.replay_buffer, model.world_model.observation_normalizer
    starts = store.observations[store.recent_transitions(len(store) * 2)]
    assert len(starts) == 64 and normalizer.count == 2 * 64
    assert np.array_equal(normalizer.low, starts.min(0)) and np.array_equal(normalizer.high, starts.max(0))


def test_real_and_imagined_rows_have_the_same_discount_factor() -> None:
    advantages = []
    for gamma in (0.99, 0.5):
        model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
        # SB3 keeps to the one that the buffer was made with
        model.gamma = gamma
        advantages.append(model.learn(64).rollout_buffer.imagined.advantages)
    assert th.equal(*advantages)


def test_advantages_correlate_if_and_only_if_what_is_imagined_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    # A long rollout, whose correlation is its own
    imagination = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL | {"n_steps": 256}).learn(256).imagination
    segments = imagination.replay_buffer.segments(
        *imagination.replay_buffer.transitions_since(np.zeros(1, dtype=int)), imagination.world_model.horizon
    )
    monkeypatch.setattr(imagination.replay_buffer, "segments", lambda *_: segments)
    monkeypatch.setattr("sb3_agd.imagination.held_out_errors.missed_randomness", lambda *_: th.zeros(()))
    shuffled = np.random.default_rng(0).permutation(len(segments))
    # Segments that end sooner than in reality count for as long as they last
    half = segments.mask.clone()
    half[:, 2:] = False
    shorter = replace(segments, rewards=th.where(half, segments.rewards, 1e3), mask=half)
    for imagined, lowest, highest in (
        (segments, 0.999, 1.001),
        (shorter, 0.999, 1.001),
        (segments.map(lambda array: array[shuffled]), -0.3, 0.3),
    ):
        monkeypatch.setattr(imagination.world_model, "predict", lambda *_, imagined=imagined: imagined)
        assert lowest < imagination.test()["advantage_correlation"].item() < highest
    # Where all real advantages are the same, nothing can be said
    imagination.model.policy.value_net.weight.data.zero_()
    constant = replace(segments, rewards=th.ones_like(segments.rewards), terminations=th.zeros_like(segments.terminations))
    monkeypatch.setattr(imagination.replay_buffer, "segments", lambda *_: constant)
    assert imagination.test()["advantage_correlation"].isnan()


def test_guides_see_values_within_the_bound_in_the_unit_of_real_advantages() -> None:
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    state = model.imagination.state
    state.value_range = (-1.0, 2.0)
    for bias, expected in ((-1e4, -1.0), (1e4, 2.0)):
        with th.no_grad():
            model.policy.value_net.bias.fill_(bias)
        assert (model.imagination.critic.values(th.zeros(5, 3)) == expected).all()
    # There is no unit as long as all advantages were the same
    for deviation, unit in ((None, 1.0), (0.0, 1.0), (0.5, 0.5)):
        state.advantage_std = deviation
        assert model.imagination.critic.advantage_std == unit


def test_the_unit_of_advantages_follows_the_real_ones_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    deviations = iter([1.0, 2.0, 2.0])
    monkeypatch.setattr("sb3_agd.imagination.critic_trust.RealRows.advantage_std", lambda *_: next(deviations))
    model = AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL)
    units = [model.learn(32, reset_num_timesteps=False).imagination.state.advantage_std for _ in range(3)]
    assert units == pytest.approx([1.0, 1.1, 1.19])


def test_imagination_may_start_from_all_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_agd.imagination.start_states.RECENT_ROWS", 16)
    numbers = itertools.count()
    env = ToyEnv(spaces.Box(0, 1e3, (1,)), episode_length=1000, observe=lambda _: np.array([next(numbers)], dtype=np.float32))
    model = AGDPPO("MlpPolicy", env, start_states="all", **SMALL).learn(64)
    starts: list[th.Tensor] = []
    imagine = model.imagination.imagine
    monkeypatch.setattr(model.imagination, "imagine", lambda first, *rest: starts.append(first) or imagine(first, *rest))
    model.imagination.imagine_rows(NO_GUIDANCE, 4000)
    assert set(starts[0].flatten().tolist()) == set(range(64))

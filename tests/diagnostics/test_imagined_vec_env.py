"""ImaginedVecEnv: SB3's algorithms act in the world model as in a real environment."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, SPACES, ToyEnv
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
    sync_envs_normalization,
)
from vec_env_checker import check_vec_env

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, DiffusionWorldModel, GuidanceCallback, ImaginedVecEnv, Segments
from sb3_agd.diagnostics import poses
from sb3_agd.world_model.segments import mask_after_termination

MIXED = spaces.Dict(
    {"matrix": spaces.Box(-1, 1, (2, 3)), "mode": spaces.Discrete(4), "counts": spaces.Box(0, 9, (2,), np.int64)}
)
DOUBLE = spaces.Box(-1, 1, (3,), np.float64)


def make_model(env: Any, n_steps: int = 96, **settings: Any) -> AGDPPO:
    policy = "MultiInputPolicy" if isinstance(getattr(env, "observation_space", None), spaces.Dict) else "MlpPolicy"
    return AGDPPO(policy, env, **SMALL | settings).learn(n_steps)


@pytest.fixture(scope="module")
def pendulum() -> AGDPPO:
    return make_model("Pendulum-v1", 256)


@pytest.fixture(scope="module")
def cart_pole() -> AGDPPO:
    return make_model("CartPole-v1", 256)


@pytest.fixture
def known_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world model adds the action to each number of the state. The reward is the sum, and a sum above 5 is the end."""

    def predict(self: Any, states: th.Tensor, actions: th.Tensor, generator: th.Generator) -> Segments[th.Tensor]:
        following = states + actions[:, 0]
        sums = following.sum(1, keepdim=True)
        return Segments(th.stack([states, following], 1), actions, sums, sums > 5, mask_after_termination(sums > 5))

    monkeypatch.setattr(DiffusionWorldModel, "predict", predict)


@pytest.fixture(scope="module")
def counter() -> AGDPPO:
    """Observations count the steps of an episode: its first one is zero."""
    space = spaces.Box(-np.inf, np.inf, (2,))
    env = ToyEnv(space, spaces.Box(-1, 1, (2,)), observe=lambda step: np.full(2, step, dtype=np.float32))
    return make_model(env)


@pytest.fixture(scope="module")
def bounded() -> AGDPPO:
    return make_model(ToyEnv(spaces.Box(-1, 1, (2,))))


def test_the_checker_passes_sb3s_own_environments() -> None:
    check_vec_env(DummyVecEnv([ToyEnv] * 3))


@pytest.mark.parametrize("space", [*SPACES, DOUBLE, MIXED], ids=lambda space: str(space).split("(")[0])
def test_it_is_what_sb3_expects_for_each_observation_space(space: spaces.Space) -> None:
    check_vec_env(DummyVecEnv([partial(ToyEnv, space)] * 3))
    check_vec_env(ImaginedVecEnv(make_model(ToyEnv(space)), n_envs=3, max_episode_steps=10))


@pytest.mark.parametrize("space", SPACES[:2] + SPACES[3:], ids=lambda space: str(space).split("(")[0])
def test_it_is_what_sb3_expects_for_each_action_space(space: spaces.Space) -> None:
    check_vec_env(ImaginedVecEnv(make_model(ToyEnv(action_space=space)), n_envs=2, max_episode_steps=10))


def test_it_is_what_sb3_expects_where_episodes_end(cart_pole: AGDPPO) -> None:
    check_vec_env(ImaginedVecEnv(cart_pole, n_envs=3), n_steps=200)


def test_steps_have_the_distribution_of_imagined_segments(pendulum: AGDPPO) -> None:
    n_envs, horizon = 400, 4
    start = pendulum.replay_buffer.observations[0, 30]
    env = ImaginedVecEnv(pendulum, n_envs, start, seed=0)
    actions = np.linspace(-2, 2, n_envs * horizon, dtype=np.float32).reshape(horizon, n_envs, 1)
    env.reset()
    steps = [env.step(action)[:2] for action in actions]
    segments = pendulum.imagine(start[None].repeat(n_envs, 0), actions=actions.swapaxes(0, 1), seed=1)
    imagined = np.clip(segments.observations, env.observation_space.low, env.observation_space.high)
    for step, (observations, rewards) in enumerate(steps):
        for ours, theirs in ((observations, imagined[:, step + 1]), (rewards, segments.rewards[:, step])):
            # The actions are the same, the noise is not
            standard_error = (ours - theirs).std(0) / n_envs**0.5
            assert (np.abs((ours - theirs).mean(0)) < 5 * standard_error + 1e-4).all()
            np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.2, atol=1e-3)


@pytest.mark.usefixtures("known_world")
def test_states_rewards_and_ends_are_those_of_the_world_model(counter: AGDPPO) -> None:
    env = ImaginedVecEnv(counter, 2, max_episode_steps=4, start_states=np.array([0.0, 1.0]))
    assert env.reset().tolist() == [[0, 1], [0, 1]]
    actions = np.array([[1.0, 1.0], [0.5, -0.5]])
    steps = [env.step(actions) for _ in range(4)]
    assert [observations.tolist() for observations, *_ in steps[:2]] == [[[1, 2], [0.5, 0.5]], [[2, 3], [1, 0]]]
    assert [rewards.tolist() for _, rewards, *_ in steps] == [[3, 1], [5, 1], [7, 1], [3, 1]]
    # The first episode ends in a terminal state, the second at the time limit
    assert [dones.tolist() for *_, dones, _ in steps] == [[False, False], [False, False], [True, False], [False, True]]
    cut_off = [[info["TimeLimit.truncated"] for info in infos] for *_, infos in steps]
    assert cut_off == [[False, False], [False, False], [False, False], [False, True]]
    assert steps[2][3][0]["terminal_observation"].tolist() == [3, 4]
    assert steps[3][3][1]["terminal_observation"].tolist() == [2, -1]
    # The observations after the ends are those of new episodes
    assert steps[2][0].tolist() == [[0, 1], [1.5, -0.5]] and steps[3][0].tolist() == [[1, 2], [0, 1]]


@pytest.mark.usefixtures("known_world")
def test_a_terminal_state_at_the_time_limit_is_terminal(counter: AGDPPO) -> None:
    env = ImaginedVecEnv(counter, max_episode_steps=1, start_states=np.array([3.0, 2.0]))
    env.reset()
    _, _, dones, infos = env.step(np.ones((1, 2)))
    assert dones.all() and infos[0]["TimeLimit.truncated"] is False


@pytest.mark.usefixtures("known_world")
def test_observations_keep_to_the_space_and_steps_go_on_from_there(bounded: AGDPPO) -> None:
    env = ImaginedVecEnv(bounded, max_episode_steps=10, start_states=np.array([0.5, 0.0]))
    env.reset()
    assert env.step(np.ones((1, 2)))[0].tolist() == [[1, 1]]
    assert env.step(np.full((1, 2), -0.5))[0].tolist() == [[0.5, 0.5]]


@pytest.mark.usefixtures("known_world")
def test_actions_beyond_the_bounds_are_clipped(counter: AGDPPO) -> None:
    env = ImaginedVecEnv(counter, max_episode_steps=10, start_states=np.zeros(2))
    env.reset()
    assert env.step(np.array([[7.0, -3.0]]))[0].tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "actions, message",
    [
        (np.zeros(2), r"`actions` must have shape \(2, 1\), not \(2,\)"),
        (np.zeros((1, 1)), r"`actions` must have shape \(2, 1\), not \(1, 1\)"),
        (np.full((2, 1), np.nan), "`actions` must be finite"),
    ],
)
def test_bad_actions_are_refused(actions: np.ndarray, message: str, pendulum: AGDPPO) -> None:
    env = ImaginedVecEnv(pendulum, 2)
    with pytest.raises(ValueError, match="Call `reset` before the first step"):
        env.step(np.zeros((2, 1)))
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_an_action_that_is_not_in_a_discrete_space_is_refused(cart_pole: AGDPPO) -> None:
    env = ImaginedVecEnv(cart_pole)
    env.reset()
    with pytest.raises(ValueError, match=r"`actions` must be of Discrete\(2\)"):
        env.step(np.array([2]))


def test_the_time_limit_is_that_of_the_task(pendulum: AGDPPO, cart_pole: AGDPPO, counter: AGDPPO, tmp_path: Path) -> None:
    assert ImaginedVecEnv(pendulum).max_episode_steps == 200
    assert ImaginedVecEnv(cart_pole).max_episode_steps == 500
    assert ImaginedVecEnv(cart_pole, max_episode_steps=7).max_episode_steps == 7
    pendulum.save(tmp_path / "model")
    starts = np.array([1.0, 0.0, 0.0])
    shorter = gym.wrappers.TimeLimit(gym.make("Pendulum-v1"), 30)
    assert ImaginedVecEnv(AGDPPO.load(tmp_path / "model", shorter, "cpu"), start_states=starts).max_episode_steps == 30
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    assert ImaginedVecEnv(loaded, start_states=starts, task="Pendulum-v1").max_episode_steps == 200
    for model in (loaded, counter):
        with pytest.raises(ValueError, match="time limit of the task is not known here: give `max_episode_steps`, or `task`"):
            ImaginedVecEnv(model, start_states=np.zeros(3))


def test_environments_in_other_processes_are_not_asked_for_their_task() -> None:
    env = SubprocVecEnv([partial(gym.make, "CartPole-v1")] * 2)
    try:
        model = make_model(env)
        with pytest.raises(ValueError, match="time limit of the task is not known here"):
            ImaginedVecEnv(model)
    finally:
        env.close()


def test_episodes_begin_with_first_states_of_real_ones(counter: AGDPPO) -> None:
    env = ImaginedVecEnv(counter, 100, max_episode_steps=3, seed=0)
    assert (env.reset() == 0).all()
    for _ in range(3):
        observations = env.step(np.zeros((100, 2)))[0]
    assert (observations == 0).all()


def test_episodes_begin_with_any_recent_state(counter: AGDPPO) -> None:
    observations = ImaginedVecEnv(counter, 2000, "recent", max_episode_steps=3, seed=0).reset()
    # The state after the last step of an episode is none to act in
    assert np.unique(observations).tolist() == list(range(20))


def test_episodes_begin_with_given_states(pendulum: AGDPPO) -> None:
    starts = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -3.0]])
    drawn = ImaginedVecEnv(pendulum, 50, starts, seed=0).reset()
    assert np.unique(drawn, axis=0).tolist() == starts[::-1].tolist()


def test_dict_observations_may_be_given_as_start_states() -> None:
    model = make_model(ToyEnv(MIXED))
    start = {"matrix": np.full((2, 3), 0.25, np.float32), "mode": np.int64(2), "counts": np.array([3, 7])}
    batch = {key: np.asarray(part)[None] for key, part in start.items()}
    observations = ImaginedVecEnv(model, 2, batch, max_episode_steps=5).reset()
    assert observations["mode"].tolist() == [2, 2] and observations["counts"].tolist() == [[3, 7]] * 2
    assert (observations["matrix"] == 0.25).all()


def test_a_seed_repeats_a_run_and_disturbs_nothing(pendulum: AGDPPO) -> None:
    before = (pendulum.imagination.state.rng.bit_generator.state, th.get_rng_state(), np.random.get_state()[1].copy())
    env = pendulum.env.envs[0].unwrapped
    real_state = env.state.copy()

    def run(seed: int | None) -> np.ndarray:
        imagined = ImaginedVecEnv(pendulum, 2, seed=seed)
        return np.stack([imagined.reset(), *(imagined.step(np.ones((2, 1)))[0] for _ in range(5))])

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2)) and not np.array_equal(run(None), run(None))
    assert pendulum.imagination.state.rng.bit_generator.state == before[0]
    assert th.equal(th.get_rng_state(), before[1]) and np.array_equal(np.random.get_state()[1], before[2])
    assert np.array_equal(env.state, real_state) and len(pendulum.replay_buffer) == 256


@pytest.mark.usefixtures("known_world")
def test_states_off_the_observed_range_are_marked(counter: AGDPPO) -> None:
    # Real observations range from 0 to 20
    env = ImaginedVecEnv(counter, 4, np.array([[0.0, 20.0]]), max_episode_steps=10)
    env.reset()
    assert [info["off_range"] for info in env.reset_infos] == [0.0] * 4
    infos = env.step(np.array([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [1.0, -1.0]]))[3]
    assert [info["off_range"] for info in infos] == pytest.approx([0, 0.05, 0.025, 0])
    far = ImaginedVecEnv(counter, 1, np.array([0.0, 60.0]), max_episode_steps=10)
    far.reset()
    assert far.reset_infos[0]["off_range"] == pytest.approx(2)


def test_what_never_changed_in_the_data_is_infinitely_far_off_when_it_does() -> None:
    space = spaces.Box(-np.inf, np.inf, (2,))
    model = make_model(ToyEnv(space, observe=lambda step: np.array([step, 0.7], dtype=np.float32)))
    env = ImaginedVecEnv(model, 2, max_episode_steps=50, seed=0)
    env.reset()
    # Rounding does not count
    assert all(info["off_range"] <= 0.1001 for _ in range(50) for info in env.step(np.zeros((2, 2)))[3])
    env = ImaginedVecEnv(model, 1, np.array([3.0, 0.8]), max_episode_steps=50)
    env.reset()
    assert env.reset_infos[0]["off_range"] == np.inf


@pytest.mark.parametrize("algorithm", [PPO, SAC], ids=["PPO", "SAC"])
def test_algorithms_train_in_it(algorithm: Any, pendulum: AGDPPO) -> None:
    assert_trains(algorithm, VecMonitor(ImaginedVecEnv(pendulum, 2, max_episode_steps=20)))


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=["PPO", "DQN"])
def test_algorithms_for_discrete_actions_train_in_it(algorithm: Any, cart_pole: AGDPPO) -> None:
    assert_trains(algorithm, VecMonitor(ImaginedVecEnv(cart_pole, 2, max_episode_steps=20)))


def assert_trains(algorithm: Any, env: VecMonitor) -> None:
    settings = {PPO: {"n_steps": 32, "batch_size": 32}}.get(algorithm, {"learning_starts": 20, "train_freq": 1})
    model: BaseAlgorithm = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu", **settings)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(128)
    assert any(not th.equal(*pair) for pair in zip(before, model.policy.parameters(), strict=True))
    assert {episode["l"] for episode in model.ep_info_buffer} <= set(range(1, 21)) and len(model.ep_info_buffer) > 0


def test_agdppo_trains_in_it(pendulum: AGDPPO) -> None:
    model = make_model(ImaginedVecEnv(pendulum, 2))
    assert model.rollout_buffer.n_imagined > 0


def test_policies_are_evaluated_in_it(pendulum: AGDPPO) -> None:
    env = VecMonitor(ImaginedVecEnv(pendulum, 4, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(pendulum, env, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [200] * 6 and np.isfinite(returns).all() and len(set(returns)) == 6


def test_an_agent_that_was_trained_with_normalisation_acts_in_normalised_imagination() -> None:
    model = make_model(VecNormalize(make_vec_env("Pendulum-v1", seed=0)))
    raw = ImaginedVecEnv(model, 3, seed=0)
    env = VecNormalize(raw, training=False, norm_reward=False)
    sync_envs_normalization(model.env, env)
    observations = env.reset()
    np.testing.assert_allclose(observations, model.env.normalize_obs(env.get_original_obs()), rtol=1e-6)
    # Raw units: the reward of Pendulum is never positive
    assert np.abs(env.get_original_obs()[:, :2]).max() <= 1
    env.step(model.predict(observations)[0])
    evaluate_policy(model, VecMonitor(env), n_eval_episodes=1)


def test_sb3s_wrappers_go_around_it(pendulum: AGDPPO, tmp_path: Path) -> None:
    env = VecMonitor(ImaginedVecEnv(pendulum, 2, max_episode_steps=5), str(tmp_path / "monitor"), ("off_range",))
    env = VecFrameStack(VecNormalize(env), 3)
    assert env.reset().shape == (2, 9)
    for _ in range(5):
        _, _, dones, infos = env.step(np.zeros((2, 1)))
    assert dones.all() and all(info["episode"]["l"] == 5 for info in infos)
    env.close()
    lines = (tmp_path / "monitor.monitor.csv").read_text().splitlines()
    assert '"Pendulum-v1"' in lines[0] and lines[1] == "r,l,t,off_range" and len(lines) == 4


def test_the_world_model_of_a_callback_is_acted_in() -> None:
    names = ("n_steps", "batch_size", "n_epochs", "policy_kwargs", "device", "seed")
    callback = GuidanceCallback(**{key: value for key, value in SMALL.items() if key not in names})
    with pytest.raises(ValueError, match="GuidanceCallback has no world model before its first training"):
        ImaginedVecEnv(callback)
    A2C("MlpPolicy", "Pendulum-v1", n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu").learn(64, callback)
    check_vec_env(ImaginedVecEnv(callback, 2), n_steps=201)


def test_a_rule_of_termination_ends_imagined_episodes() -> None:
    model = make_model(ToyEnv(), termination_fn=lambda observations, actions, following: np.ones(len(actions), dtype=bool))
    env = ImaginedVecEnv(model, 2, max_episode_steps=10)
    env.reset()
    _, _, dones, infos = env.step(np.zeros((2, 2)))
    assert dones.all() and not any(info["TimeLimit.truncated"] for info in infos)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_envs": 0}, "`n_envs` must be an integer of at least 1"),
        ({"max_episode_steps": 0}, "`max_episode_steps` must be an integer of at least 1"),
        ({"start_states": "last"}, '`start_states` must be "first", "recent" or observations'),
        ({"start_states": np.zeros((2, 4))}, r"`observations` must have shape \(B, 3\)"),
        ({"render_mode": "human"}, '`render_mode` must be "rgb_array" or None'),
        ({"render_mode": "rgb_array"}, "Pendulum-v1 cannot be drawn: the pose of PendulumEnv cannot be computed"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str, pendulum: AGDPPO) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ImaginedVecEnv(pendulum, **arguments)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_imagine_single_steps_are_refused() -> None:
    kwargs = {"network": "mlp", "network_kwargs": {"width": 16, "depth": 1}}
    with pytest.raises(ValueError, match=r'Single steps cannot be imagined: `horizon` must be 4.*network "recurrent"'):
        ImaginedVecEnv(make_model("Pendulum-v1", world_model_kwargs=kwargs))
    ImaginedVecEnv(make_model("Pendulum-v1", world_model_kwargs=kwargs, horizon=1)).reset()
    with pytest.raises(ValueError, match="The world model was not trained yet"):
        ImaginedVecEnv(AGDPPO("MlpPolicy", "Pendulum-v1", **SMALL))
    with pytest.raises(ValueError, match="`model` must be AGDPPO or a GuidanceCallback, not PPO"):
        ImaginedVecEnv(PPO("MlpPolicy", "Pendulum-v1", device="cpu"))


def test_a_model_loaded_without_transitions_needs_start_states(pendulum: AGDPPO, tmp_path: Path) -> None:
    pendulum.save(tmp_path / "model")
    pendulum.save_replay_buffer(tmp_path / "transitions")
    loaded = AGDPPO.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="no real states to start from: call `load_replay_buffer`, or give `start_states`"):
        ImaginedVecEnv(loaded, task="Pendulum-v1")
    loaded.load_replay_buffer(tmp_path / "transitions")
    ImaginedVecEnv(loaded, task="Pendulum-v1").reset()


def test_single_environments_have_no_methods_and_share_their_attributes(pendulum: AGDPPO) -> None:
    env = ImaginedVecEnv(pendulum, 2)
    with pytest.raises(AttributeError, match="Imagined environments have no method `compute_reward`"):
        env.env_method("compute_reward")
    env.set_attr("max_episode_steps", 5)
    assert env.get_attr("max_episode_steps") == [5, 5]


def test_without_a_render_mode_there_are_no_images(pendulum: AGDPPO) -> None:
    env = ImaginedVecEnv(pendulum)
    env.reset()
    with pytest.warns(UserWarning, match="no `render_mode` was passed"):
        assert env.render() is None
    assert env.get_images() == [None]


def test_images_show_the_imagined_poses(hopper: AGDPPO, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def prepare(env: Any) -> None:
        def render() -> np.ndarray:
            shown.append(np.concatenate([env.data.qpos, env.data.qvel]))
            return np.full((8, 8, 3), len(shown), dtype=np.uint8)

        env.render = render

    monkeypatch.setattr(poses, "prepare_renderer", prepare)
    start = np.zeros(11, dtype=np.float32)
    start[0], start[5] = 1.25, 2.0
    env = ImaginedVecEnv(hopper, 2, start, seed=0, render_mode="rgb_array", task="Hopper-v5")
    assert env.metadata == {"render_modes": ["human", "rgb_array"], "render_fps": 125}
    with pytest.raises(ValueError, match="Call `reset` before the first step or image"):
        env.render()
    env.reset()
    image = env.render()
    # One above the other
    assert image.shape == (16, 8, 3) and image[0, 0, 0] == 1 and image[-1, 0, 0] == 2
    position = np.zeros(2)
    for _ in range(3):
        observations = env.step(np.zeros((2, 3)))[0]
        env.render()
        # The place along the track, which observations leave out, follows from the speed
        position = position + observations[:, 5] * 0.008
        np.testing.assert_allclose(np.stack(shown[-2:])[:, 0], position, rtol=1e-5)
        np.testing.assert_allclose(np.stack(shown[-2:])[:, 1:], observations, rtol=1e-6)
    env.reset()
    env.render()
    assert shown[-1].tolist() == shown[0].tolist() and shown[-1][0] == 0


def test_imagined_episodes_are_filmed(hopper: AGDPPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    start = np.zeros(11, dtype=np.float32)
    start[0] = 1.25
    try:
        env = ImaginedVecEnv(hopper, 1, start, seed=0, render_mode="rgb_array", task="Hopper-v5")
    except ValueError as error:
        assert "MuJoCo cannot render here" in str(error)
        pytest.skip(str(error))
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.ones((1, 3)))
    recorder.close()
    assert (tmp_path / "rl-video-step-0-to-step-5.mp4").stat().st_size > 1000


def test_a_task_that_is_not_known_is_not_drawn(hopper: AGDPPO) -> None:
    with pytest.raises(ValueError, match="The task is not known here, and cannot be drawn: give `task`"):
        ImaginedVecEnv(hopper, 1, np.zeros(11), max_episode_steps=5, render_mode="rgb_array")


def test_observations_of_another_kind_are_not_drawn(pendulum: AGDPPO) -> None:
    with pytest.raises(ValueError, match="Hopper-v5 cannot be drawn: the pose of HopperEnv cannot be computed"):
        ImaginedVecEnv(pendulum, render_mode="rgb_array", task="Hopper-v5")

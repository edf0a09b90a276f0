"""A killed run continues from its last checkpoint as if it had never stopped."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecExtractDictObs, VecMonitor, VecNormalize

from sb3_agd import AGDPPO, ResumableCheckpointCallback

STEPS, SAVE_FREQ = 256, 80
FALLING = LinearSchedule(3e-3, 1e-4, end_fraction=1.0)


def train_with_checkpoints(make_env: Callable[[], VecEnv], folder: Path, **kwargs: Any) -> AGDPPO:
    """
    :param make_env: Makes the environment
    :param folder: Where checkpoints go
    :param kwargs: Settings
    :return: Model after all steps
    """
    return with_checkpoints(AGDPPO("MlpPolicy", make_env(), **{**SMALL, **kwargs}), folder)


def with_checkpoints(model: AGDPPO, folder: Path) -> AGDPPO:
    """
    :param model: A model
    :param folder: Where checkpoints go
    :return: The model after all steps
    """
    return model.learn(STEPS, callback=ResumableCheckpointCallback(SAVE_FREQ // model.n_envs, str(folder)))


def resume(make_env: Callable[[], VecEnv], folder: Path, steps: int) -> AGDPPO:
    """
    :param make_env: Makes the environment
    :param folder: Where the checkpoints are
    :param steps: Number of the checkpoint
    :return: Model after all steps
    """
    # As in a fresh process, whose global generators are anywhere
    th.manual_seed(12345)
    np.random.seed(12345)
    # RL-Zoo gives the seed once more
    model = AGDPPO.load(folder / f"rl_model_{steps}_steps", make_env(), force_reset=False, seed=SMALL["seed"])
    model.load_replay_buffer(folder / f"rl_model_replay_buffer_{steps}_steps.pkl", truncate_last_traj=False)
    return model.learn(STEPS - model.num_timesteps, reset_num_timesteps=False)


def assert_equal_runs(model: AGDPPO, other: AGDPPO) -> None:
    """
    :param model: A model
    :param other: Another one, which must be the same in every bit
    """
    assert model.num_timesteps == other.num_timesteps == STEPS
    for name in ("policy", "world_model"):
        parameters, others = getattr(model, name).state_dict(), getattr(other, name).state_dict()
        assert parameters.keys() == others.keys()
        for key in parameters:
            assert th.equal(parameters[key], others[key]), (name, key)
    for optimizer, other_optimizer in (
        (model.policy.optimizer, other.policy.optimizer),
        (model.world_model.optimizer, other.world_model.optimizer),
    ):
        assert optimizer.param_groups[0]["lr"] == other_optimizer.param_groups[0]["lr"]
        moments, other_moments = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
        assert all(th.equal(moments[key]["exp_avg_sq"], other_moments[key]["exp_avg_sq"]) for key in moments)
    normalize, other_normalize = model.get_vec_normalize_env(), other.get_vec_normalize_env()
    if normalize is not None:
        for name in ("obs_rms", "ret_rms"):
            statistics, other_statistics = getattr(normalize, name), getattr(other_normalize, name)
            np.testing.assert_array_equal(statistics.mean, other_statistics.mean)
            np.testing.assert_array_equal(statistics.var, other_statistics.var)
    for name in ("observations", "actions", "rewards", "terminations", "is_transition", "position"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(other.replay_buffer, name))
    assert th.equal(model.rollout_buffer.imagined.advantages, other.rollout_buffer.imagined.advantages)


@pytest.mark.parametrize(
    ("env_id", "n_envs", "normalize", "kwargs"),
    [
        ("HalfCheetah-v5", 1, True, {}),
        ("Hopper-v5", 2, True, {"n_steps": 16}),
        ("Ant-v5", 1, False, {}),
        ("Reacher-v5", 1, True, {"real_steps_per_update": 8}),
        # Rollouts of which not all are imagined from
        ("Pendulum-v1", 1, True, {"real_steps_per_update": 48}),
        ("Pendulum-v1", 1, False, {"use_sde": True, "sde_sample_freq": 4}),
        ("CartPole-v1", 2, False, {"n_steps": 16, "learning_rate": FALLING, "world_model_learning_rate": FALLING}),
    ],
)
def test_a_resumed_run_follows_the_uninterrupted_one_bit_for_bit(
    env_id: str, n_envs: int, normalize: bool, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    def make_env() -> VecEnv:
        env = make_vec_env(env_id, n_envs, seed=3)
        return VecNormalize(env) if normalize else env

    model = train_with_checkpoints(make_env, tmp_path, **kwargs)
    # Due after 80, 160 and 240 steps, written at the start of the rollout that follows, the last one at the end
    assert sorted(int(path.stem.split("_")[2]) for path in tmp_path.glob("*.zip")) == [96, 160, 256]
    for steps in (96, 160):
        assert_equal_runs(model, resume(make_env, tmp_path, steps))


def make_toy(n_envs: int = 1, **kwargs: Any) -> VecEnv:
    """
    :param n_envs: Number of environments
    :param kwargs: Arguments of :class:`ToyEnv`
    :return: Environments that were not reset yet
    """
    env = DummyVecEnv([lambda: ToyEnv(episode_length=50, **kwargs)] * n_envs)
    env.seed(0)
    return env


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[AGDPPO, Path]:
    """A model after all steps, and the folder of its checkpoints, which tests only read."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return train_with_checkpoints(make_toy, folder), folder


def test_a_run_that_started_from_a_loaded_agent_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return make_vec_env("Pendulum-v1", seed=3)

    AGDPPO("MlpPolicy", make_env(), **SMALL).learn(64).save(tmp_path / "first")
    # Without its transitions: what bounds the values comes from the file for a while
    model = with_checkpoints(AGDPPO.load(tmp_path / "first", make_env()), tmp_path)
    resumed = resume(make_env, tmp_path, 96)
    assert model.imagination.state.value_range[0] > -np.inf
    assert resumed.imagination.state.value_range == model.imagination.state.value_range
    assert_equal_runs(model, resumed)


def test_an_ordinary_file_starts_new_episodes_without_force_reset(tmp_path: Path) -> None:
    def make_env() -> VecNormalize:
        return VecNormalize(make_vec_env(ToyEnv))

    AGDPPO("MlpPolicy", make_env(), **SMALL).learn(48).save(tmp_path / "model")
    model = AGDPPO.load(tmp_path / "model", make_env(), force_reset=False)
    model.learn(32, reset_num_timesteps=False)
    assert len(model.replay_buffer) == 32


def test_a_run_that_fails_before_its_first_step_can_still_be_resumed(whole_run: tuple[AGDPPO, Path]) -> None:
    class Failing(BaseCallback):
        def _init_callback(self) -> None:
            raise RuntimeError("not now")

        def _on_step(self) -> bool:
            return True

    model, folder = whole_run
    resumed = AGDPPO.load(folder / "rl_model_96_steps", make_toy(), force_reset=False)
    resumed.load_replay_buffer(folder / "rl_model_replay_buffer_96_steps.pkl", truncate_last_traj=False)
    with pytest.raises(RuntimeError, match="not now"):
        resumed.learn(160, callback=Failing(), reset_num_timesteps=False)
    assert_equal_runs(model, resumed.learn(160, reset_num_timesteps=False))


def test_a_training_that_failed_before_it_began_ends_without_a_further_error(tmp_path: Path) -> None:
    # As RL-Zoo calls it after any error
    ResumableCheckpointCallback(1, str(tmp_path)).on_training_end()
    assert not [*tmp_path.iterdir()]


def test_a_run_without_its_transitions_continues_but_differs(whole_run: tuple[AGDPPO, Path]) -> None:
    model, folder = whole_run
    other = AGDPPO.load(folder / "rl_model_96_steps", make_toy(), force_reset=False)
    other.learn(STEPS - other.num_timesteps, reset_num_timesteps=False)
    assert other.num_timesteps == model.num_timesteps
    assert len(other.replay_buffer) == STEPS - 96
    weights = zip(model.policy.parameters(), other.policy.parameters(), strict=True)
    assert any(not th.equal(ours, theirs) for ours, theirs in weights)


def test_a_loaded_checkpoint_starts_new_episodes_if_its_environment_is_reset(whole_run: tuple[AGDPPO, Path]) -> None:
    _, folder = whole_run
    for force_reset, reset_num_timesteps, steps_in_episode in ((True, False, 1), (False, True, 1), (False, False, 97 % 50)):
        seen = []
        model = AGDPPO.load(folder / "rl_model_96_steps", make_toy(), force_reset=force_reset)
        model.learn(
            32,
            callback=lambda local_variables, _, seen=seen: seen.append(local_variables["env"].get_attr("steps")[0]) or True,
            reset_num_timesteps=reset_num_timesteps,
        )
        assert seen[0] == steps_in_episode


def test_a_seed_counts_where_a_checkpoint_is_loaded_without_resuming_it(whole_run: tuple[AGDPPO, Path]) -> None:
    _, folder = whole_run
    numbers = []
    for force_reset, seed in ((True, 5), (True, 6), (False, 5), (False, 6)):
        model = AGDPPO.load(folder / "rl_model_96_steps", make_toy(), force_reset=force_reset, seed=seed)
        numbers.append(model.imagination.state.rng.integers(1_000_000))
    assert numbers[0] == np.random.default_rng(5).integers(1_000_000)
    assert numbers[1] == np.random.default_rng(6).integers(1_000_000)
    assert numbers[2] == numbers[3]


def test_other_wrappers_are_refused_by_name(whole_run: tuple[AGDPPO, Path]) -> None:
    _, folder = whole_run
    model = AGDPPO.load(folder / "rl_model_96_steps", VecMonitor(make_toy()), force_reset=False)
    with pytest.raises(
        ValueError, match=r"cannot be restored.*\['DummyVecEnv', 'ToyEnv'\].*\['VecMonitor', 'DummyVecEnv', 'ToyEnv'\]"
    ):
        model.learn(32, reset_num_timesteps=False)


def test_a_warning_names_attributes_that_cannot_be_stored(tmp_path: Path) -> None:
    class WithFile(ToyEnv):
        def __init__(self) -> None:
            super().__init__()
            self.log = (tmp_path / "log").open("w")

    model = AGDPPO("MlpPolicy", WithFile(), **SMALL)
    with pytest.warns(UserWarning, match=r"\['WithFile.log'\] cannot be pickled"):
        model.learn(64, callback=ResumableCheckpointCallback(32, str(tmp_path)))


def test_environments_that_cannot_be_stored_start_new_episodes(tmp_path: Path) -> None:
    class WithProcess(ToyEnv):
        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            self.process = (number for number in range(1000))
            return super().reset(**kwargs)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            next(self.process)
            return super().step(action)

    def make_env() -> VecNormalize:
        return VecNormalize(DummyVecEnv([WithProcess]))

    model = AGDPPO("MlpPolicy", make_env(), **SMALL)
    with pytest.warns(UserWarning, match=r"\['WithProcess.process'\].*resumed run will start new ones"):
        model.learn(64, callback=ResumableCheckpointCallback(32, str(tmp_path)))
    resumed = AGDPPO.load(tmp_path / "rl_model_32_steps", make_env(), force_reset=False)
    resumed.learn(32, reset_num_timesteps=False)
    assert resumed.num_timesteps == 64
    # What VecNormalize had learned is there: 33 observations until the checkpoint, one of the reset, 32 steps
    assert resumed.get_vec_normalize_env().obs_rms.count == pytest.approx(33 + 1 + 32, abs=0.01)


def test_checkpoints_are_refused_for_other_algorithms_and_within_event_callbacks(tmp_path: Path) -> None:
    within_eval = ResumableCheckpointCallback(1, str(tmp_path))
    for callback in (
        EveryNTimesteps(32, ResumableCheckpointCallback(1, str(tmp_path))),
        EveryNTimesteps(32, CallbackList([ResumableCheckpointCallback(1, str(tmp_path))])),
        EvalCallback(DummyVecEnv([ToyEnv]), eval_freq=32, callback_on_new_best=within_eval),
    ):
        with pytest.raises(ValueError, match=f"must be called at each step, but {type(callback).__name__}"):
            AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64, callback)
    with pytest.raises(ValueError, match="for AGDPPO, not for PPO"):
        PPO("MlpPolicy", ToyEnv(), n_steps=32).learn(64, ResumableCheckpointCallback(32, str(tmp_path)))


def test_a_saved_model_learns_on_like_the_live_one(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", make_toy(), **SMALL).learn(64)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "transitions")
    loaded = AGDPPO.load(tmp_path / "model")
    loaded.load_replay_buffer(tmp_path / "transitions")
    for learner in (model, loaded):
        env = make_toy()
        env.seed(1)
        set_random_seed(2)
        learner.set_env(env)
        learner.learn(128)
    for name in ("policy", "world_model"):
        weights, others = getattr(model, name).state_dict(), getattr(loaded, name).state_dict()
        assert all(th.equal(weights[key], others[key]) for key in weights), name


def test_a_checkpoint_that_is_due_in_the_last_rollout_is_written_at_the_end(tmp_path: Path) -> None:
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64, ResumableCheckpointCallback(50, str(tmp_path)))
    assert (tmp_path / "rl_model_64_steps.zip").is_file()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_no_checkpoint_is_written_during_a_rollout_or_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = ResumableCheckpointCallback(10, str(tmp_path))
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    # A callback ends the second rollout early
    model.learn(64, [checkpoints, ConvertCallback(lambda local_variables, _: local_variables["self"].num_timesteps < 50)])
    assert [path.name for path in tmp_path.glob("*.zip")] == ["rl_model_32_steps.zip"]
    monkeypatch.setattr(model, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, checkpoints)
    # RL-Zoo ends the progress bar so, which may be the checkpoints
    checkpoints.on_training_end()
    assert [path.name for path in tmp_path.glob("*.zip")] == ["rl_model_32_steps.zip"]


def test_the_zip_of_an_earlier_run_is_removed_before_new_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_with_checkpoints(make_toy, tmp_path)
    monkeypatch.setattr(AGDPPO, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_with_checkpoints(make_toy, tmp_path)
    assert (tmp_path / "rl_model_replay_buffer_96_steps.pkl").is_file()
    assert not (tmp_path / "rl_model_96_steps.zip").exists()


def test_environments_in_other_processes_start_new_episodes(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)

    with pytest.warns(UserWarning, match="environments in a SubprocVecEnv cannot be read.*resumed run will start new ones"):
        train_with_checkpoints(make_env, tmp_path, n_steps=16).env.close()
    model = AGDPPO.load(tmp_path / "rl_model_96_steps", make_env(), force_reset=False)
    model.learn(STEPS - model.num_timesteps, reset_num_timesteps=False)
    model.env.close()
    assert model.num_timesteps == STEPS


def test_the_agent_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(AGDPPO, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        train_with_checkpoints(lambda: VecNormalize(make_toy()), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rl_model_replay_buffer_96_steps.pkl",
        "rl_model_vecnormalize_96_steps.pkl",
    ]


class Outer(gym.Env):
    """Holds another environment without being a wrapper: gymnasium would pickle only the arguments of its constructor."""

    def __init__(self) -> None:
        self.inner = gym.make("InvertedPendulum-v5")
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.inner.step(action)


def test_a_warning_names_an_environment_within_an_environment(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", Outer(), **SMALL)
    with pytest.warns(UserWarning, match=r"\['Outer.inner'\] cannot be pickled"):
        model.learn(64, callback=ResumableCheckpointCallback(32, str(tmp_path)))


class Unpicklable(gym.Env):
    """Dict observations, and an attribute that cannot be pickled."""

    observation_space = gym.spaces.Dict({"seen": gym.spaces.Box(-1, 1, (3,))})
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


def test_statistics_of_dict_observations_are_resumed_if_episodes_are_lost(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return VecExtractDictObs(VecNormalize(DummyVecEnv([Unpicklable]), norm_obs_keys=["seen"]), "seen")

    with pytest.warns(UserWarning, match="Unpicklable.lock"):
        AGDPPO("MlpPolicy", make_env(), **SMALL).learn(64, callback=ResumableCheckpointCallback(32, str(tmp_path)))
    model = AGDPPO.load(tmp_path / "rl_model_32_steps", make_env(), force_reset=False).learn(32, reset_num_timesteps=False)
    # 32 steps and a reset before the checkpoint and after it
    assert model.get_vec_normalize_env().obs_rms["seen"].count == pytest.approx(66, abs=1)

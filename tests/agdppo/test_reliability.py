"""Nothing is lost, nothing is silent: failures that users meet."""

import copy
import errno
import os
import time
import warnings
import zipfile
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, GuidanceCallback
from sb3_agd.checkpoint.resume import discard_stale_replies
from sb3_agd.checkpoint.save_util import save_vec_normalize
from sb3_agd.experience.replay_buffer import ReplayBuffer

# Files


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["model", "model.zip", Path("new") / "folder" / "model.zip"])
def test_a_saved_file_has_the_name_that_sb3_gives_it(name: str | Path, tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.save(tmp_path / name)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["model.zip"]
    AGDPPO.load(tmp_path / name)


def test_a_crash_while_saving_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "transitions.npz")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(th, "save", full_disk)
        patch.setattr(np, "savez", full_disk)
        for save, name in ((model.save, "model.zip"), (model.save_replay_buffer, "transitions.npz")):
            with pytest.raises(OSError, match=f"No space left.*the file that was there is intact.*{name}") as raised:
                save(tmp_path / name)
            assert raised.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_crash_while_saving_statistics_keeps_those_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(DummyVecEnv([ToyEnv]))
    save_vec_normalize(env, tmp_path / "vecnormalize.pkl")
    before = (tmp_path / "vecnormalize.pkl").read_bytes()
    monkeypatch.setattr("pickle.dump", full_disk)
    with pytest.raises(OSError, match="No space left on device: nothing was saved; the file that was there is intact"):
        save_vec_normalize(env, tmp_path / "vecnormalize.pkl")
    assert (tmp_path / "vecnormalize.pkl").read_bytes() == before


def test_a_symbolic_link_is_kept_when_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.zip").symlink_to(tmp_path / "elsewhere.zip")
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").is_symlink()
    AGDPPO.load(tmp_path / "elsewhere.zip")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"nothing was saved.*model\.zip"):
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "file" / "model.zip")


def test_an_open_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(file)
    AGDPPO.load(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "model.zip"
    AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32).save(file)
    return file


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_as_damaged(share: float, saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.zip cannot be loaded as AGDPPO: it is damaged or incomplete"):
        AGDPPO.load(tmp_path / "cut.zip")


def test_a_file_of_another_algorithm_is_refused_by_name(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(ValueError, match=r"sac\.zip.*another algorithm, whose policy is a SACPolicy"):
        AGDPPO.load(tmp_path / "sac.zip")
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo.zip")
    with pytest.raises(ValueError, match=r"ppo\.zip.*To start from a file of PPO, call `set_parameters"):
        AGDPPO.load(tmp_path / "ppo.zip")


def test_an_environment_with_other_spaces_is_refused_by_name(saved: Path) -> None:
    other = ToyEnv(observation_space=spaces.Box(-1, 1, (5,)))
    with pytest.raises(ValueError, match=r"model\.zip.*Observation spaces do not match.*\(3,\).*\(5,\)"):
        AGDPPO.load(saved, env=other)
    other = ToyEnv(action_space=spaces.Discrete(7))
    with pytest.raises(ValueError, match=r"model\.zip.*Action spaces do not match.*Discrete\(7\)"):
        AGDPPO.load(saved, env=other)


def test_a_world_model_of_another_size_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)model\.zip.*size mismatch for networks.denoiser"):
        AGDPPO.load(saved, world_model_kwargs={"network_kwargs": {"width": 32, "depth": 1}})


def test_a_file_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    model.file_format = 99
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"model\.zip.*format 99, newer than"):
        AGDPPO.load(tmp_path / "model.zip")
    with (tmp_path / "model.zip").open("rb") as file, pytest.raises(ValueError, match="format 99, newer than"):
        AGDPPO.load(file)


def test_the_world_model_of_a_file_cannot_run_code(saved: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(tmp_path / "model.zip", "w") as target:
        for name in source.namelist():
            with target.open(name, "w") as file:
                if name == "world_model.pth":
                    th.save({"weights": Hostile()}, file)
                else:
                    file.write(source.read(name))
    with pytest.raises(ValueError, match=r"model\.zip cannot be loaded"):
        AGDPPO.load(tmp_path / "model.zip")
    assert not (tmp_path / "harm").exists()


def test_a_file_without_read_permission_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip"):
        AGDPPO.load("nowhere.zip")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.zip"):
        AGDPPO.load(tmp_path / "folder.zip")


# Bad numbers


class Diverge(BaseCallback):
    """Poison a weight of the world model before some of the rollouts end."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        assert isinstance(self.model, AGDPPO)
        if self.num_timesteps in self.steps:
            self.weights_before = {name: value.clone() for name, value in self.model.world_model.state_dict().items()}
            self.poison = self.model.world_model.networks["denoiser"].reward.bias.register_hook(lambda grad: grad * th.nan)
        if self.num_timesteps - 32 in self.steps:
            self.poison.remove()
        return True


class ImaginedRows(BaseCallback):
    """Note how many rows were imagined for each update, as the algorithm logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.counts.append(self.logger.name_to_value["agd/n_imagined"])


def test_a_world_model_that_diverges_is_restored_and_training_goes_on_with_real_data() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    diverge, rows = Diverge({33, 97}), ImaginedRows()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(160, callback=[diverge, rows])
    assert len([warning for warning in caught if "last good weights are restored" in str(warning.message)]) == 1
    # The second and the fourth of five rollouts
    assert [count > 0 for count in rows.counts] == [True, False, True, False, True]
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in model.world_model.state_dict().values())


class Scramble(BaseCallback):
    """Put random numbers into the world model at the start of some of the rollouts."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, AGDPPO)
        world_model = self.model.world_model
        if self.num_timesteps in self.steps:
            self.weights = copy.deepcopy(world_model.state_dict())
            with th.no_grad():
                for parameter in (*world_model.networks.parameters(), *world_model.ema_networks.parameters()):
                    parameter.normal_(0, 30)
        elif self.num_timesteps - 32 in self.steps:
            world_model.load_state_dict(self.weights)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)])
def test_imagination_of_a_world_model_that_has_exploded_is_not_used(space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(space), **SMALL)
    rows = ImaginedRows()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(160, callback=[Scramble({32, 96}), rows])
    assert len([warning for warning in caught if "has diverged" in str(warning.message)]) == 1
    assert [count > 0 for count in rows.counts] == [True, False, True, False, True]


def test_weights_and_optimiser_of_a_world_model_that_diverged_are_those_of_before() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32)
    world_model = model.world_model
    weights = {name: value.clone() for name, value in world_model.state_dict().items()}
    optimizer = {name: value["exp_avg"].clone() for name, value in world_model.optimizer.state_dict()["state"].items()}
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        model.imagination.fit(3, 16, 1e38)
    for name, value in world_model.state_dict().items():
        assert th.equal(value, weights[name])
    for name, value in world_model.optimizer.state_dict()["state"].items():
        assert th.equal(value["exp_avg"], optimizer[name])
    assert np.isfinite(list(model.imagination.fit(3, 16, 1e-3).values())).all()


def test_ctrl_c_while_a_world_model_diverges_leaves_the_weights_of_before() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32)
    weights = {name: value.clone() for name, value in model.world_model.state_dict().items()}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.imagination.fit(3, 16, 1e38, lambda: interrupt() if not_finite(model.world_model) else None)
    assert all(th.equal(value, weights[name]) for name, value in model.world_model.state_dict().items())


def not_finite(module: th.nn.Module) -> bool:
    """
    :param module: Networks
    :return: Whether a weight of them is NaN or infinite
    """
    return not all(tensor.isfinite().all() for tensor in module.state_dict().values())


# Interrupted runs


@pytest.mark.parametrize(
    "moment",
    ["collect_rollouts", "world_model.fit", "rollout_buffer.augment", "train"],
    ids=["collection", "fitting", "imagination", "update"],
)
def test_ctrl_c_leaves_a_model_that_predicts_saves_and_learns_on(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    owner, name = (attrgetter(moment.rpartition(".")[0])(model), moment.split(".")[-1]) if "." in moment else (model, moment)
    whole = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        # After the work is done, when all of its effects are there but nothing that should follow
        whole(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        model.learn(64, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "transitions")
    loaded = AGDPPO.load(tmp_path / "model", env=ToyEnv())
    loaded.load_replay_buffer(tmp_path / "transitions")
    observation = np.zeros(3, dtype=np.float32)
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    for survivor in (model, loaded):
        survivor.learn(64, reset_num_timesteps=False)
        assert survivor.rollout_buffer.n_imagined > 0
        assert all(tensor.isfinite().all() for tensor in survivor.policy.state_dict().values())


def interrupted_in_a_step(step: int) -> ToyEnv:
    """
    :param step: Number of the step that is interrupted
    :return: Environment whose observations tell how many steps the episode has taken
    """

    def reward(total_steps: int) -> float:
        if total_steps == step:
            # The state has changed already
            raise KeyboardInterrupt
        return 1.0

    return ToyEnv(observe=lambda steps: np.full(3, steps, dtype=np.float32), reward=reward)


def states_of_all_transitions(store: ReplayBuffer) -> th.Tensor:
    """
    :param store: Transitions
    :return: Their states and next states, shape (N, 2, observation_dim)
    """
    return store.segments(*store.recent_transitions(len(store)), horizon=1).observations


@pytest.mark.parametrize("step", [25, 40, 45])
def test_ctrl_c_within_a_step_stores_no_transition_that_never_happened(step: int) -> None:
    model = AGDPPO("MlpPolicy", interrupted_in_a_step(step), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.learn(96)
    model.learn(64, reset_num_timesteps=False)
    states = states_of_all_transitions(model.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)


def test_ctrl_c_while_environments_are_reset_stores_no_transition_that_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(observe=lambda steps: np.full(3, steps, dtype=np.float32)), **SMALL).learn(32)
    reset = model.env.reset

    def interrupted() -> None:
        reset()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.env, "reset", interrupted)
        model.learn(32)
    model.learn(64, reset_num_timesteps=False)
    states = states_of_all_transitions(model.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)


@pytest.mark.parametrize("step", [25, 40, 45])
def test_ctrl_c_with_the_callback_alone_stores_no_transition_that_never_happened(step: int) -> None:
    callback = GuidanceCallback(horizon=4, world_model_warmup=0, world_model_gradient_steps=2)
    env = interrupted_in_a_step(step)
    model = A2C("MlpPolicy", env, n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        model.learn(96, callback)
    model.learn(64, callback, reset_num_timesteps=False)
    states = states_of_all_transitions(callback.imagination.replay_buffer)[..., 0]
    assert len(states) > 64
    assert th.equal(states[:, 1], states[:, 0] + 1)
    # An interrupt that is over resets nothing more
    n_episodes = (states[:, 0] == 0).sum()
    model.learn(8, callback, reset_num_timesteps=False)
    states = states_of_all_transitions(callback.imagination.replay_buffer)[..., 0]
    assert (states[:, 0] == 0).sum() == n_episodes + 1


def test_ctrl_c_while_other_processes_step_leaves_a_model_that_learns_on() -> None:
    env = SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    model = AGDPPO("MlpPolicy", env, **SMALL)
    step_wait = env.step_wait

    def interrupted() -> Any:
        if model.num_timesteps == 40:
            # One of the answers was taken, the other is still in its pipe
            env.remotes[0].recv()
            raise KeyboardInterrupt
        return step_wait()

    env.step_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(200)
    # Whoever closes the environments now does not wait for an answer that was taken already
    assert not env.waiting
    env.step_wait = step_wait
    for _ in range(2):
        model.learn(64, reset_num_timesteps=False)
    env.close()
    states = states_of_all_transitions(model.replay_buffer)
    # Positions move by a fiftieth of the velocity
    assert th.allclose(states[:, 1, 0], states[:, 0, 0] + 0.02 * states[:, 0, 1], atol=1e-6)


def test_replies_of_an_interrupted_process_are_discarded() -> None:
    env = SubprocVecEnv([partial(ToyEnv, reward=slow)] * 2)
    actions = np.zeros((2, 2), dtype=np.float32)
    env.reset()
    env.step_async(actions)
    discard_stale_replies(env)
    for remote in env.remotes:
        remote.send(("reset", (None, {})))
    discard_stale_replies(env)
    assert env.reset().shape == (2, 3)
    _, rewards, _, _ = env.step(actions)
    env.close()
    assert rewards.tolist() == [1.0, 1.0]


def slow(step: int) -> float:
    """
    :param step: Number of the step
    :return: The reward, after a while
    """
    time.sleep(0.2)
    return 1.0


def test_a_dead_worker_is_named_and_leaves_a_usable_model(tmp_path: Path) -> None:
    def kill(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if local_variables["self"].num_timesteps == 2 * 40:
            local_variables["env"].processes[1].kill()
        return True

    def make_env() -> VecEnv:
        return SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)

    env = make_env()
    model = AGDPPO("MlpPolicy", env, **SMALL)
    with pytest.raises(RuntimeError, match=r"environments \[1\] have died at step 80.*can be saved"):
        model.learn(1000, callback=kill)
    with suppress(BrokenPipeError):
        env.close()
    model.save(tmp_path / "model.zip")
    env = make_env()
    model.set_env(env)
    model.learn(64, reset_num_timesteps=False)
    env.close()
    assert model.num_timesteps >= 80 + 64
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_ctrl_c_during_a_fit_leaves_a_usable_world_model() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(64)
    updates = iter(range(100))

    def interrupt() -> None:
        if next(updates) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.imagination.fit(3, 16, 1e-3, interrupt)
    assert np.isfinite(model.imagine(np.zeros((4, 3), dtype=np.float32)).observations).all()
    model.learn(64, reset_num_timesteps=False)


# Small random environments


class RandomEnv(gym.Env):
    """
    An environment with spaces, scales, constant dimensions and episodes that a seed decides.

    :param seed: The seed
    :param stream: Which of several such environments, whose numbers must differ
    """

    def __init__(self, seed: int, stream: int):
        self.rng = np.random.default_rng(seed)
        size = int(self.rng.integers(1, 6))
        self.scale = 10 ** self.rng.uniform(-6, 6, size=size)
        self.scale[self.rng.random(size) < 0.2] = 0
        self.reward_scale = 10 ** self.rng.uniform(-6, 6)
        self.length = int(10 ** self.rng.uniform(0, 3))
        self.terminal_share = self.rng.random()
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), dtype=self.rng.choice([np.float32, np.float64]))
        action_size = int(self.rng.integers(1, 4))
        bound = np.float32(10 ** self.rng.uniform(-3, 3))
        choices = [
            spaces.Box(-bound, 2 * bound, (action_size,), dtype=np.float32),
            spaces.Discrete(action_size + 1),
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiBinary(action_size),
        ]
        self.action_space = choices[self.rng.integers(len(choices))]
        self.rng = np.random.default_rng([seed, stream])

    def _observe(self) -> np.ndarray:
        observation = 1 + self.scale * self.rng.normal(size=len(self.scale))
        return observation.astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.steps += 1
        # Lengths vary, and ends of both kinds mix
        over = self.rng.random() < 1 / self.length
        terminal = over and self.rng.random() < self.terminal_share
        return self._observe(), self.reward_scale * self.rng.normal(), terminal, over and not terminal, {}


@pytest.mark.parametrize("seed", range(200))
def test_random_environments_train_without_errors_and_stay_finite(seed: int) -> None:
    rng = np.random.default_rng(seed)
    env: VecEnv = DummyVecEnv([partial(RandomEnv, seed, stream) for stream in range(rng.integers(1, 5))])
    if rng.random() < 0.5:
        env = VecNormalize(env)
    n_steps = int(rng.integers(2, 40))
    changes = {
        "n_steps": n_steps,
        "batch_size": int(rng.integers(2, 60)),
        "horizon": int(rng.integers(1, 9)),
        "guidance": str(rng.choice(["sag", "eag", "reward", "none"])),
        "guidance_mode": str(rng.choice(["gradient", "select"])),
        "n_candidates": 3,
        "real_steps_per_update": n_steps * env.num_envs,
        "seed": seed,
    }
    model = AGDPPO("MlpPolicy", env, **SMALL | changes)
    rows = ImaginedRows()
    model.learn(2 * n_steps * env.num_envs, callback=rows)
    assert all(rows.counts)
    assert model.num_timesteps == 2 * n_steps * env.num_envs
    for module in (model.policy, model.world_model):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())

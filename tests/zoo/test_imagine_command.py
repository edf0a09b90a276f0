"""The command that writes a report."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from environments import ToyEnv
from gymnasium.envs.registration import EnvSpec

from sb3_agd.zoo import imagine
from sb3_agd.zoo.imagine import training_environment


def test_the_environment_is_made_as_in_training(tmp_path: Path) -> None:
    model = tmp_path / "Hopper-v5_1" / "best_model.zip"
    assert training_environment(model, "Hopper-v5") == ({}, None)
    # As RL-Zoo writes them
    folder = model.parent / "Hopper-v5"
    folder.mkdir(parents=True)
    wrappers = [{"gymnasium.wrappers.TimeAwareObservation": {"flatten": True}}]
    settings = OrderedDict(env_wrapper=wrappers, env_kwargs={"ctrl_cost_weight": 1.0})
    (folder / "config.yml").write_text(yaml.dump(settings))
    assert training_environment(model, "Hopper-v5")[0] == {"ctrl_cost_weight": 1.0}
    (folder / "args.yml").write_text(yaml.dump(OrderedDict(env_kwargs={"forward_reward_weight": 2.0})))
    arguments, wrapper = training_environment(model, "Hopper-v5")
    assert arguments == {"forward_reward_weight": 2.0}
    assert wrapper(gym.make("Hopper-v5")).observation_space.shape == (12,)
    (folder / "config.yml").write_text(yaml.dump(OrderedDict(vec_env_wrapper="stable_baselines3.common.vec_env.VecMonitor")))
    with pytest.raises(ValueError, match=r"`vec_env_wrapper` \(stable_baselines3.common.vec_env.VecMonitor\)"):
        training_environment(model, "Hopper-v5")


class UndrawnEnv(ToyEnv):
    def __init__(self, render_mode: str | None = None):
        super().__init__()
        assert render_mode is None or render_mode in self.metadata["render_modes"]
        self.render_mode = render_mode


@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_a_task_that_cannot_be_drawn_is_imagined_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., None]
) -> None:
    monkeypatch.setitem(gym.registry, "Undrawn-v0", EnvSpec("Undrawn-v0", UndrawnEnv))
    made: list[gym.Env] = []
    monkeypatch.setattr(imagine.AGDPPO, "load", lambda *_, **__: None)
    monkeypatch.setattr(imagine, "imagination_report", lambda _, make_env, *__, **___: made.append(make_env()))
    monkeypatch.setattr(imagine, "print_summary", lambda *_: None)
    (tmp_path / "model.zip").touch()
    command_line("imagine", "--env", "Undrawn-v0", "--model", str(tmp_path / "model.zip"))
    assert [env.render_mode for env in made] == [None]


def test_the_command_writes_a_report_and_prints_a_summary(command_run: tuple[Path, str, str]) -> None:
    folder, out, _ = command_run
    assert {"errors.png", "dimensions.png", "advantages.png", "report.json"} <= {file.name for file in folder.iterdir()}
    assert "Gain of guidance" in out
    assert out.splitlines()[-1] == f"Report in {folder.resolve()}"


def test_the_command_shows_its_progress(command_run: tuple[Path, str, str]) -> None:
    progress = [
        "Steps of real episodes (54)",
        "Monte Carlo returns, guided (8)",
        "Monte Carlo returns, unguided (8)",
        "Plots (3)",
    ]
    assert [line for line in command_run[2].splitlines() if line in progress] == progress


def test_the_command_refuses_a_damaged_model_in_one_line(
    tmp_path: Path, command_line: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model.zip"
    model.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as end:
        command_line("imagine", "--env", "Hopper-v5", "--model", str(model), "--n-filmed", "0")
    message = str(end.value.code)
    assert "model.zip cannot be loaded as AGDPPO: it is damaged" in message
    assert "\n" not in message and capsys.readouterr().out == ""

"""Nothing is lost, nothing is silent: failures that users meet."""

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from stable_baselines3.common.callbacks import BaseCallback

from sb3_agd import AGDPPO

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


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"nothing was saved.*model\.zip"):
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(tmp_path / "file" / "model.zip")


def test_an_open_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        AGDPPO("MlpPolicy", ToyEnv(), **SMALL).save(file)
    AGDPPO.load(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


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

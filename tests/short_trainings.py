"""Short trainings on the command line."""

from pathlib import Path

from sb3_agd import AGDPPO

ENV = "Hopper-v5"
TINY = (
    "n_steps:32 batch_size:32 n_epochs:1 synthetic_ratio:1 horizon:2 n_denoising_steps:1 world_model_warmup:0 "
    "real_steps_per_update:32 world_model_gradient_steps:2 world_model_batch_size:16 "
    "world_model_kwargs:dict(network_kwargs=dict(width=16,depth=1))"
).split()
TRAIN = ["train", "--algo", "agdppo", "--env", ENV, "--device", "cpu", "--verbose", "0"]


def load(run_folder: Path, name: str = ENV) -> AGDPPO:
    """Load an agent from the folder of a run."""
    # There is a folder of the same name
    return AGDPPO.load(run_folder / f"{name}.zip", device="cpu")

"""What rl_zoo3 needs besides AGDPPO for all of its commands to work."""

import importlib
import subprocess
import sys
from typing import Any

from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd.checkpoint.save_util import save_vec_normalize


def repair_zoo() -> None:
    """
    Let ``benchmark`` evaluate agents with this package's ``enjoy``: the zoo starts ``enjoy.py`` of its own checkout,
    which is not there in an installation and does not know AGDPPO. Let ``push-to-hub`` start with the present
    sb3-team-hf-integration, where a function that the zoo imports has become private and returns an object. And let
    statistics of VecNormalize be saved like agents: a crash must not destroy those of the best agent.
    """
    VecNormalize.save = save_vec_normalize  # type: ignore[method-assign, assignment]
    call = subprocess.call

    def call_enjoy(command: list[str], *args: Any, **kwargs: Any) -> int:
        if command[:2] == ["python", "enjoy.py"]:
            command = [sys.executable, "-m", "sb3_agd", "enjoy", *command[2:]]
        return call(command, *args, **kwargs)

    subprocess.call = call_enjoy  # type: ignore[assignment]
    # The package has a function of the same name as the module
    module: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(module, "generate_metadata"):
        module.generate_metadata = lambda *args: module._generate_metadata(*args).to_dict()

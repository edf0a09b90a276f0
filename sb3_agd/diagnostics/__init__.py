from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_agd.diagnostics.gain_callback import GuidanceGainCallback
from sb3_agd.diagnostics.imagined_vec_env import ImaginedVecEnv

if TYPE_CHECKING:
    from sb3_agd.diagnostics.imagination_callback import ImaginationCallback
    from sb3_agd.diagnostics.report import imagination_report

__all__ = ["GuidanceGainCallback", "ImaginationCallback", "ImaginedVecEnv", "imagination_report"]

# What draws figures, which need an extra
MODULES = {"ImaginationCallback": "imagination_callback", "imagination_report": "report"}


def __getattr__(name: str) -> Any:
    # Only when it is asked for
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    except ImportError as error:
        raise ImportError(f'`{name}` needs the extra `zoo`: pip install "sb3_agd[zoo]" ({error})') from error

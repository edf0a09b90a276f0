"""What is logged about imagination in training."""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.logger import Logger

from sb3_agd.agdppo.rollout_buffer import AugmentedRolloutBuffer


class TrainingLog:
    """Times and counts of one training, and warnings that are shown once."""

    def __init__(self) -> None:
        self._warned_of: set[str] = set()
        self.start()

    def start(self) -> None:
        """Reset times and counts at the start of training."""
        self._seconds = {"fit": 0.0, "imagine": 0.0}
        # Imagined transitions since the call of `learn`
        self.n_imagined_total = 0
        # All of these and the time, when they were last written, and when SB3 last showed them
        self._written = self._shown = self._totals()

    def warn_once(self, kind: str, message: str) -> None:
        """
        :param kind: What the warning is about
        :param message: The warning, shown if it is the first of its kind
        """
        if kind not in self._warned_of:
            warnings.warn(message, stacklevel=2)
        self._warned_of.add(kind)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """
        Add the duration of a block to the figure of that name.

        :param name: ``"fit"`` or ``"imagine"``
        """
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def count(self, n_imagined: int) -> None:
        """
        :param n_imagined: Number of transitions that were imagined
        """
        self.n_imagined_total += n_imagined

    def _totals(self) -> dict[str, float]:
        return {**self._seconds, "n_imagined": self.n_imagined_total, "time": time.perf_counter()}

    def write(self, logger: Logger, buffer: AugmentedRolloutBuffer, is_paused: bool) -> None:
        """
        :param logger: SB3's logger
        :param buffer: The algorithm's rollout buffer
        :param is_paused: Whether imagination pauses
        """
        if "agd/n_imagined" not in logger.name_to_value:
            # SB3 has shown them since: with `log_interval`, not after each rollout
            self._shown = self._written
        self._written = self._totals()
        since = {name: total - self._shown[name] for name, total in self._written.items()}
        figures = {
            # Later rounds come after SB3 has written its log, and are part of the next one
            "n_imagined": since["n_imagined"],
            "n_imagined_total": self.n_imagined_total,
            "paused": int(is_paused),
            "real_advantage_mean": float(buffer.advantages.mean()),
        }
        if buffer.imagined is not None and buffer.n_imagined > 0:
            figures["imagined_advantage_mean"] = buffer.imagined.advantages.mean().item()
        figures |= {f"{name}_time_share": since[name] / since["time"] for name in self._seconds}
        for name, figure in figures.items():
            logger.record(f"agd/{name}", figure)


@contextmanager
def shown_progress(progress_bar: ProgressBarCallback | None, n_updates: int) -> Iterator[Callable[[], None] | None]:
    """
    Show the progress of a fit beside SB3's progress bar.

    :param progress_bar: SB3's progress bar, if there is one
    :param n_updates: Number of updates, 0 to show nothing
    :return: To be called after each update
    """
    if progress_bar is None or n_updates == 0:
        yield None
        return
    bar, numbers = progress_bar.pbar, itertools.count(1)
    try:
        yield lambda: bar.set_description(f"World model: update {next(numbers)} of {n_updates}")
    finally:
        bar.set_description("")

"""Rollout buffer that offers imagined rows beside the real ones."""

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_agd.experience.space_codecs import map_parts


class AugmentedRolloutBuffer(RolloutBuffer):
    """
    SB3's rollout buffer plus imagined rows, which join the minibatches and are dropped with the next rollout.
    All the buffer's own arrays stay real. Without imagined rows it is SB3's buffer, random stream included.

    :param buffer_size: See SB3's rollout buffer, as for all arguments but the last one
    :param observation_space: Observation space
    :param bound_values: Whether values and their targets are kept within the range that real rewards make attainable. Switched
        off with ``rollout_buffer_kwargs={"bound_values": False}``, as in the paper
    :raises ValueError: If an argument is invalid
    """

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, *args: Any, bound_values: bool = True, **kwargs: Any
    ):
        if not isinstance(bound_values, bool):
            raise ValueError(f"`bound_values` in `rollout_buffer_kwargs` must be True or False, not {bound_values!r}")
        self.bound_values = bound_values
        if isinstance(observation_space, spaces.Dict) and not isinstance(self, DictRolloutBuffer):
            raise ValueError("Dict observations need `AugmentedDictRolloutBuffer` as `rollout_buffer_class`")
        super().__init__(buffer_size, observation_space, *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self.imagined: RolloutBufferSamples | None = None
        self._real_rows: RolloutBufferSamples | None = None
        self._all_rows: RolloutBufferSamples | None = None
        self._n_parts = 1

    @property
    def n_imagined(self) -> int:
        """Number of imagined rows."""
        return 0 if self.imagined is None else len(self.imagined.advantages)

    def augment(
        self,
        imagined: RolloutBufferSamples,
        rng: np.random.Generator,
        n_repeats: int = 1,
        part: int = 0,
        n_parts: int = 1,
    ) -> None:
        """
        Add imagined rows to those that :meth:`get` returns, in place of earlier ones.

        :param imagined: Rows as :meth:`get` returns them, on the buffer's device: observations and actions as the
            policy sees and gives them, old values and log-probabilities by the current policy, advantages and
            returns in the critic's units
        :param rng: Shuffles real and imagined rows; private, so that imagination does not disturb the global stream
        :param n_repeats: How often each real row comes, so that it is not lost among the imagined ones; 0 to leave them out
        :param part: Which part of the real rows comes with them, from 0
        :param n_parts: Number of parts that the real rows are divided into, at random
        """
        self.imagined = imagined
        self._all_rows = None
        self._rng = rng
        self._n_repeats = n_repeats
        self._part = part
        self._n_parts = n_parts

    def augment_nothing(self, part: int, n_parts: int) -> None:
        """
        Drop the imagined rows, and let :meth:`get` return one part of the real ones.

        :param part: Which part, from 0
        :param n_parts: Number of parts that the real rows are divided into
        """
        assert self.imagined is not None
        empty = RolloutBufferSamples(*(map_parts(lambda column: column[:0], column) for column in self.imagined))
        self.augment(empty, self._rng, 1, part, n_parts)

    def replace_estimates(self, values: th.Tensor, log_probs: th.Tensor, estimate: Callable[[], None]) -> None:
        """
        Replace the values and log-probabilities of the real rows by those of a newer policy, after :meth:`get` was called.

        :param values: Values of the buffer's flattened observations, shape (n_steps * n_envs,)
        :param log_probs: Log-probabilities of its actions, same shape
        :param estimate: Computes advantages and returns from the values, as :meth:`compute_returns_and_advantage` does
        """
        shape = (self.buffer_size, self.n_envs)
        for name, new in (("values", values), ("log_probs", log_probs)):
            setattr(self, name, new.cpu().numpy().reshape(shape[::-1]).swapaxes(0, 1).copy())
        self.advantages = np.zeros(shape, dtype=np.float32)
        estimate()
        for name in ("values", "log_probs", "advantages", "returns"):
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        # In the same order: each part keeps its rows
        self._real_rows = super()._get_samples(self._order)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> RolloutBufferSamples:
        self._order = batch_inds
        return super()._get_samples(batch_inds, env)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        if self.imagined is None or (self.n_imagined == 0 and self._n_parts == 1):
            yield from super().get(batch_size)
            return
        if self._real_rows is None:
            # In random order
            self._real_rows = next(super().get(None))
        if self._all_rows is None:
            columns = zip(self._real_rows, self.imagined, strict=True)
            self._all_rows = RolloutBufferSamples(*(map_parts(self._joined, *both) for both in columns))
        n_rows = len(self._all_rows.advantages)
        indices = th.as_tensor(self._rng.permutation(n_rows), device=self.device)
        # Minibatches of nearly equal size: the number of rows is seldom a multiple of `batch_size`, and a few rows left over
        # would make an update of their own, with advantages normalised among these few
        n_batches = 1 if batch_size is None else math.ceil(n_rows / batch_size)
        for batch in indices.tensor_split(n_batches):
            yield RolloutBufferSamples(
                *(map_parts(lambda column, batch=batch: column[batch], column) for column in self._all_rows)
            )

    def _joined(self, real: th.Tensor, imagined: th.Tensor) -> th.Tensor:
        """
        :param real: A column of all real rows
        :param imagined: The same column of the imagined rows
        :return: The part of the real rows that is due, repeated, and the imagined rows
        """
        own_part = real.tensor_split(self._n_parts)[self._part]
        return th.cat([own_part] * self._n_repeats + [imagined.to(own_part.dtype)])


class AugmentedDictRolloutBuffer(AugmentedRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """The same for Dict observations."""

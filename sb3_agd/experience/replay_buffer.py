"""A ring buffer of real transitions that yields segments in time independent of its size."""

import os
import warnings
from collections import deque
from itertools import chain
from typing import IO, Any

import numpy as np
import torch as th

from sb3_agd.world_model import Segments

FORMAT_VERSION = 1
ARRAYS = ("observations", "actions", "rewards", "terminations", "is_transition")
# Environment indices and indices of transitions, each of shape (N,)
Indices = tuple[np.ndarray, np.ndarray]


class ReplayBuffer:
    """
    Ring buffer of transitions, one ring per environment.

    A ring holds the states of an episode at consecutive indices, each with the action taken there. The index after the
    newest transition holds the state that followed. The next transition of the same episode overwrites it with the same
    state; at the end of an episode it stays as the last state. So every state is stored once, and a segment is a run of
    consecutive indices. Memory is allocated as the data grow.

    :param capacity: Number of states over all environments
    :param n_envs: Number of environments
    :param observation_dim: Length of an observation vector
    :param action_dim: Length of an action vector
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    is_transition: np.ndarray

    def __init__(self, capacity: int, n_envs: int, observation_dim: int, action_dim: int):
        self.capacity_per_env = capacity // n_envs
        self.n_envs = n_envs
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.clear()
        self._warn_of_memory(capacity)

    def _warn_of_memory(self, capacity: int) -> None:
        """
        :param capacity: Number of states over all environments
        """
        # Windows has no sysconf
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else np.inf
        needed = capacity * sum(getattr(self, name)[0, 0].nbytes for name in ARRAYS)
        if needed > total:
            warnings.warn(
                f"The transitions may not fit into memory: with `buffer_size` {capacity} they take up to "
                f"{needed / 1e9:.1f} GB, and this machine has {total / 1e9:.1f} GB. Choose a lower `buffer_size`. "
                "Discrete and MultiDiscrete spaces take 4 bytes for each possible value",
                stacklevel=2,
            )

    def clear(self) -> None:
        """Remove all transitions."""
        shape = (self.n_envs, 0)
        self.observations = np.empty((*shape, self.observation_dim), dtype=np.float32)
        self.actions = np.empty((*shape, self.action_dim), dtype=np.float32)
        self.rewards = np.empty(shape, dtype=np.float32)
        self.terminations = np.empty(shape, dtype=bool)
        # False where only a state is stored: the last one of an episode, or the present one. There is such an index after
        # each episode, also where the newest data meet the oldest in the ring, so no segment joins two episodes
        self.is_transition = np.empty(shape, dtype=bool)
        self._allocate(1)
        # Number of indices used so far in each ring: the next transition goes to this one, modulo the capacity
        self.position = np.zeros(self.n_envs, dtype=np.int64)
        self._recount()

    def _allocate(self, n_indices: int) -> None:
        """
        Allocate memory in powers of two, so that additions take constant time on average.

        :param n_indices: Number of indices of each ring that are needed, if the capacity allows
        """
        if self.is_transition.shape[1] >= min(n_indices, self.capacity_per_env):
            return
        n_allocated = min(2 ** (n_indices - 1).bit_length(), self.capacity_per_env)
        # The flags last: an interrupt before leaves them as a lower bound of what is allocated
        for name in ARRAYS:
            before = getattr(self, name)
            grown = np.zeros((self.n_envs, n_allocated, *before.shape[2:]), dtype=before.dtype)
            grown[:, : before.shape[1]] = before
            setattr(self, name, grown)

    def _in_ring(self, indices: np.ndarray) -> np.ndarray:
        """
        :param indices: Any integers
        :return: Indices of the arrays. Those that were never allocated become the last allocated one, which holds no
            transition then either
        """
        return np.minimum(indices % self.capacity_per_env, self.is_transition.shape[1] - 1)

    def _recount(self) -> None:
        """Compute the counts that :meth:`add` keeps up to date from the arrays."""
        used = self.is_transition[:, : self._n_used()]
        self._n_transitions = int(used.sum())
        # Indices of the terminal transitions of each environment, oldest first
        self._terminal_indices: list[deque[int]] = []
        for env_index, position in enumerate(self.position):
            indices = np.flatnonzero(used[env_index] & self.terminations[env_index, : used.shape[1]])
            oldest_first = np.argsort((indices - position) % self.capacity_per_env)
            self._terminal_indices.append(deque(indices[oldest_first].tolist()))

    def __len__(self) -> int:
        """Number of stored transitions."""
        return self._n_transitions

    def holds(self, n_transitions: int) -> bool:
        """
        :param n_transitions: Number of transitions
        :return: Whether the buffer holds at least that many, or is full
        """
        return len(self) >= n_transitions or bool(self.position.max() >= self.capacity_per_env)

    def _n_used(self) -> int:
        """Number of indices of a ring that were ever written."""
        return int(min(self.position.max() + 1, self.capacity_per_env))

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminations: np.ndarray,
        episode_ends: np.ndarray,
        is_known: np.ndarray | bool = True,
    ) -> None:
        """
        Append one transition of each environment.

        :param observations: Shape (n_envs, observation_dim)
        :param actions: As the environments received them, shape (n_envs, action_dim)
        :param rewards: Shape (n_envs,)
        :param next_observations: The states that followed, never those after a reset, shape (n_envs, observation_dim)
        :param terminations: Whether the state that followed is terminal, shape (n_envs,)
        :param episode_ends: Whether the episode is over for any reason, shape (n_envs,)
        :param is_known: Whether the transition is stored, shape (n_envs,). Where it is not, because the state that followed is
            unknown, the episode ends with the state before it
        """
        env_indices = np.arange(self.n_envs)
        # The present state may lie one index further if an episode ends
        self._allocate(int(self.position.max()) + 3)
        indices, next_indices = self.position % self.capacity_per_env, (self.position + 1) % self.capacity_per_env
        for overwritten in (indices, next_indices):
            self._discard(env_indices, overwritten)
        self.observations[env_indices, indices] = observations
        self.actions[env_indices, indices] = actions
        self.rewards[env_indices, indices] = rewards
        self.terminations[env_indices, indices] = terminations
        self.observations[env_indices, next_indices] = next_observations
        stored = np.broadcast_to(is_known, self.n_envs)
        self.position += np.where(stored, 1 + np.asarray(episode_ends, dtype=np.int64), self._has_unfinished())
        # Last, so that an interrupt leaves no half-written transition
        self.is_transition[env_indices, indices] = stored
        self._n_transitions += int(stored.sum())
        for env_index in np.flatnonzero(terminations & stored):
            self._terminal_indices[env_index].append(int(indices[env_index]))

    def _discard(self, env_indices: np.ndarray, indices: np.ndarray) -> None:
        """
        Remove what is about to be overwritten.

        :param env_indices: All environments
        :param indices: One index per environment
        """
        held = self.is_transition[env_indices, indices]
        self._n_transitions -= int(held.sum())
        for env_index in np.flatnonzero(held & self.terminations[env_indices, indices]):
            # The oldest transitions are overwritten first
            self._terminal_indices[env_index].popleft()
        self.is_transition[env_indices, indices] = False

    def close_episodes(self) -> None:
        """Close all unfinished episodes: the next transitions start new ones."""
        # An interrupt may have left the counts wrong
        self._recount()
        self.position += self._has_unfinished()

    def _has_unfinished(self) -> np.ndarray:
        """
        :return: Whether each environment has stored a transition of the present episode, shape (n_envs,)
        """
        previous = self._in_ring(self.position - 1)
        return (self.position > 0) & self.is_transition[np.arange(self.n_envs), previous]

    def recent_transitions(self, n_transitions: int) -> Indices:
        """
        :param n_transitions: Number of newest indices to look at, over all environments
        :return: Environment indices and indices of the transitions among them, each of shape (N,), oldest first in each
            environment
        """
        return self.transitions_since(self.position - max(n_transitions // self.n_envs, 1))

    def transitions_since(self, position: np.ndarray) -> Indices:
        """
        :param position: An earlier value of ``position``, shape (n_envs,)
        :return: Environment indices and indices of the transitions added since then, each of shape (N,), oldest first in
            each environment
        """
        n_back = min(int((self.position - position).max()), self._n_used())
        serials = self.position[:, None] - np.arange(n_back, 0, -1)
        indices = self._in_ring(serials)
        env_indices = np.broadcast_to(np.arange(self.n_envs)[:, None], indices.shape)
        kept = self.is_transition[env_indices, indices] & (serials >= position[:, None])
        return env_indices[kept], indices[kept]

    def episode_starts(self, env_indices: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """
        :param env_indices: Shape (N,)
        :param indices: Indices of transitions, shape (N,)
        :return: Whether each of them is the first stored transition of its episode, shape (N,)
        """
        return ~self.is_transition[env_indices, self._in_ring(indices - 1)]

    def sample_transitions(self, n_transitions: int, rng: np.random.Generator) -> Indices:
        """
        Draw transitions uniformly from the whole buffer, with replacement. It must hold at least one.

        :param n_transitions: Number of transitions
        :param rng: Random generator
        :return: Environment indices and indices, each of shape (n_transitions,)
        """
        n_used = self._n_used()
        env_indices, indices = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        while len(indices) < n_transitions:
            # At least one in three indices holds a transition as soon as each environment has stored one
            drawn_envs = rng.integers(self.n_envs, size=n_transitions)
            drawn = rng.integers(n_used, size=n_transitions)
            kept = self.is_transition[drawn_envs, drawn]
            env_indices = np.concatenate([env_indices, drawn_envs[kept]])
            indices = np.concatenate([indices, drawn[kept]])
        return env_indices[:n_transitions], indices[:n_transitions]

    def terminal_indices(self) -> Indices:
        """
        :return: Environment indices and indices of all terminal transitions
        """
        counts = [len(indices) for indices in self._terminal_indices]
        indices = np.fromiter(chain.from_iterable(self._terminal_indices), dtype=np.int64, count=sum(counts))
        return np.repeat(np.arange(self.n_envs), counts), indices

    def segments(self, env_indices: np.ndarray, indices: np.ndarray, horizon: int) -> Segments[th.Tensor]:
        """
        Segments that start at the given transitions. A segment that reaches the end of its episode, or the newest
        transition, is padded with masked copies of its last transition.

        :param env_indices: Shape (B,)
        :param indices: Indices of transitions, shape (B,)
        :param horizon: Number of transitions of a segment
        :return: Segments, in CPU memory
        """
        column, steps = env_indices[:, None], np.arange(horizon)
        mask = self.is_transition[column, self._in_ring(indices[:, None] + steps)]
        mask = np.logical_and.accumulate(mask, axis=1)
        last = mask.sum(1, keepdims=True) - 1
        inside = self._in_ring(indices[:, None] + np.minimum(steps, last))
        states = np.concatenate([indices[:, None], self._in_ring(inside + 1)], axis=1)
        return Segments(
            observations=self.observations[column, states],
            actions=self.actions[column, inside],
            rewards=self.rewards[column, inside],
            terminations=self.terminations[column, inside] & mask,
            mask=mask,
        ).map(th.from_numpy)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | self._used_arrays()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fill(state, state["position"])

    def _used_arrays(self) -> dict[str, np.ndarray]:
        """Each of the arrays without the indices that were never written."""
        n_used = self._n_used()
        return {name: getattr(self, name)[:, :n_used] for name in ARRAYS}

    def _fill(self, arrays: dict[str, np.ndarray], position: np.ndarray) -> None:
        """
        Replace the content.

        :param arrays: The used part of each of the arrays
        :param position: New value of ``position``
        """
        self.clear()
        self._allocate(max(arrays["observations"].shape[1], int(position.max()) + 1))
        for name in ARRAYS:
            getattr(self, name)[:, : arrays[name].shape[1]] = arrays[name]
        self.position[:] = position
        self._recount()

    def save(self, file: IO[bytes]) -> None:
        """
        Write the content as plain arrays (npz).

        :param file: Open binary file
        """
        content = self._used_arrays() | {"capacity_per_env": np.array(self.capacity_per_env), "position": self.position}
        np.savez(file, allow_pickle=False, format_version=np.array(FORMAT_VERSION), **content)

    def load(self, file: IO[bytes]) -> None:
        """
        Replace the content by that of a file, which must come from a buffer of the same shape.

        :param file: Open binary file
        :raises ValueError: If the file is damaged or does not fit; the present content is kept then
        """
        names = ("format_version", "capacity_per_env", "position", *ARRAYS)
        try:
            with np.load(file, allow_pickle=False) as content:
                file_format = int(content["format_version"])
                loaded = {name: content[name] for name in names if name in content}
        except Exception as error:  # numpy and zipfile raise errors of many kinds on damaged files
            raise ValueError(f"not a readable file of transitions ({error})") from error
        if file_format > FORMAT_VERSION:
            raise ValueError(f"written in format {file_format}, newer than {FORMAT_VERSION}, the newest one known here")
        missing = [name for name in names if name not in loaded]
        if missing:
            raise ValueError(f"not a readable file of transitions (without {', '.join(missing)})")
        n_used = loaded["observations"].shape[1] if loaded["observations"].ndim == 3 else 0
        for name, array in loaded.items():
            here = np.asarray(getattr(self, name, FORMAT_VERSION))
            fits = array.ndim == here.ndim and array.dtype == here.dtype
            if not fits or (here.ndim > 1 and array.shape[1] != n_used):
                raise ValueError(f"its `{name}` is an array of type {array.dtype} and shape {array.shape}")
        for what, found, expected in (
            ("environments", len(loaded["position"]), self.n_envs),
            ("states per environment (`buffer_size`)", int(loaded["capacity_per_env"]), self.capacity_per_env),
            ("observation dimensions", loaded["observations"].shape[-1], self.observation_dim),
            ("action dimensions", loaded["actions"].shape[-1], self.action_dim),
        ):
            if found != expected:
                raise ValueError(f"its number of {what} is {found}, here it is {expected}")
        if n_used > self.capacity_per_env or any(len(loaded[name]) != self.n_envs for name in ARRAYS):
            raise ValueError("its arrays differ in length")
        self._fill(loaded, loaded["position"])

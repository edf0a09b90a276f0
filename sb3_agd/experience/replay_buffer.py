"""All real transitions, kept so that windows of consecutive ones can be drawn in time that does not grow with their number."""

from collections import deque
from itertools import chain
from typing import IO, Any

import numpy as np
import torch as th

from sb3_agd.world_model import Segments

FORMAT_VERSION = 1
# Share of the world model's training windows that is drawn from the newest transitions only
RECENT_SHARE = 0.5
ARRAYS = ("observations", "actions", "rewards", "terminations", "is_transition")


class ReplayBuffer:
    """
    Ring buffer of transitions, one stream per environment.

    A stream holds the states of an episode in consecutive rows, together with the action taken there. The state that
    follows the newest transition always stands in the row after it: the next transition overwrites that row with the
    same state, or, if the episode is over, leaves it as the episode's last state. So every state is stored once, and
    a window is a run of rows.

    :param capacity: Number of rows over all environments
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
        self.n_rows = capacity // n_envs
        self.n_envs = n_envs
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # Zeroed memory is taken from the system only where it is written: the store grows with its content
        shape = (self.n_envs, self.n_rows)
        self.observations = np.zeros((*shape, self.observation_dim), dtype=np.float32)
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.float32)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.terminations = np.zeros(shape, dtype=bool)
        # False for rows that only hold the state after the last transition of an episode, or of the stream as it is
        # now. Such a row stands behind every end, also where the newest rows meet the oldest in the ring, so no
        # window runs across one
        self.is_transition = np.zeros(shape, dtype=bool)
        self.position = np.zeros(self.n_envs, dtype=np.int64)
        self._count()

    def _count(self) -> None:
        """Look through all rows for what :meth:`add` then keeps up to date, so that nothing else needs to."""
        used = self.is_transition[:, : self._n_used()]
        self._n_transitions = int(used.sum())
        # Rows of the terminal transitions of each stream, oldest first
        self._terminal_rows: list[deque[int]] = []
        for stream, position in enumerate(self.position):
            rows = np.flatnonzero(used[stream] & self.terminations[stream, : used.shape[1]])
            oldest_first = np.argsort((rows - position) % self.n_rows)
            self._terminal_rows.append(deque(rows[oldest_first].tolist()))

    def __len__(self) -> int:
        """Number of transitions held."""
        return self._n_transitions

    def holds(self, n_transitions: int) -> bool:
        """
        :param n_transitions: Number of transitions
        :return: Whether there are so many, or as many as there is room for
        """
        return len(self) >= n_transitions or bool(self.position.max() >= self.n_rows)

    def _n_used(self) -> int:
        """Number of rows of a stream that were ever written."""
        return int(min(self.position.max() + 1, self.n_rows))

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminations: np.ndarray,
        episode_ends: np.ndarray,
    ) -> None:
        """
        Append one transition of each environment.

        :param observations: Shape (n_envs, observation_dim)
        :param actions: As the environments received them, shape (n_envs, action_dim)
        :param rewards: Shape (n_envs,)
        :param next_observations: The states that followed, never those after a reset, shape (n_envs,
            observation_dim)
        :param terminations: Whether the state that followed is terminal, shape (n_envs,)
        :param episode_ends: Whether the episode is over for any reason, shape (n_envs,)
        """
        env_indices = np.arange(self.n_envs)
        row, after = self.position % self.n_rows, (self.position + 1) % self.n_rows
        for overwritten in (row, after):
            self._forget(env_indices, overwritten)
        self.observations[env_indices, row] = observations
        self.actions[env_indices, row] = actions
        self.rewards[env_indices, row] = rewards
        self.terminations[env_indices, row] = terminations
        self.observations[env_indices, after] = next_observations
        self.position += 1 + episode_ends
        # Only now, so that an interrupt before it leaves no transition that is half written
        self.is_transition[env_indices, row] = True
        self._n_transitions += self.n_envs
        for stream in np.flatnonzero(terminations):
            self._terminal_rows[stream].append(int(row[stream]))

    def _forget(self, env_indices: np.ndarray, rows: np.ndarray) -> None:
        """
        Take rows that are about to be overwritten out of the account.

        :param env_indices: All environments
        :param rows: One row of each stream
        """
        held = self.is_transition[env_indices, rows]
        self._n_transitions -= int(held.sum())
        for stream in np.flatnonzero(held & self.terminations[env_indices, rows]):
            # Rows are overwritten in the order in which they were written
            self._terminal_rows[stream].popleft()
        self.is_transition[env_indices, rows] = False

    def end_episodes(self) -> None:
        """Close all unfinished episodes, because the environments are about to be reset from outside."""
        env_indices = np.arange(self.n_envs)
        # Ctrl-C may have come while a transition was being added
        self._count()
        previous = (self.position - 1) % self.n_rows
        unfinished = (self.position > 0) & self.is_transition[env_indices, previous]
        self.position += unfinished

    def recent_transitions(self, n_transitions: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param n_transitions: Number of newest rows to look at, over all environments
        :return: Streams and rows of the transitions among them, each of shape (N,), oldest first in each stream
        """
        return self.transitions_since(self.position - max(n_transitions // self.n_envs, 1))

    def transitions_since(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param position: An earlier value of ``position``, shape (n_envs,)
        :return: Streams and rows of the transitions added since then, each of shape (N,), oldest first in each stream
        """
        n_back = min(int((self.position - position).max()), self._n_used())
        serials = self.position[:, None] - np.arange(n_back, 0, -1)
        rows = serials % self.n_rows
        env_indices = np.broadcast_to(np.arange(self.n_envs)[:, None], rows.shape)
        kept = self.is_transition[env_indices, rows] & (serials >= position[:, None])
        return env_indices[kept], rows[kept]

    def episode_starts(self, env_indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """
        :param env_indices: Shape (N,)
        :param rows: Rows of transitions, shape (N,)
        :return: Whether each of them is the first one of its episode, or of what is held of it, shape (N,)
        """
        return ~self.is_transition[env_indices, (rows - 1) % self.n_rows]

    def sample_transitions(self, n_starts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw transitions evenly from the whole store, which must hold one at least, with replacement.

        :param n_starts: Number of transitions
        :param rng: Random generator
        :return: Streams and rows, each of shape (n_starts,)
        """
        n_used = self._n_used()
        env_indices, rows = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        while len(rows) < n_starts:
            # Some rows hold no transition: at least every third row does as soon as one transition is stored in each
            # stream
            candidate_streams = rng.integers(self.n_envs, size=n_starts)
            candidate_rows = rng.integers(n_used, size=n_starts)
            kept = self.is_transition[candidate_streams, candidate_rows]
            env_indices = np.concatenate([env_indices, candidate_streams[kept]])
            rows = np.concatenate([rows, candidate_rows[kept]])
        return env_indices[:n_starts], rows[:n_starts]

    def terminal_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: Streams and rows of all terminal transitions
        """
        counts = [len(rows) for rows in self._terminal_rows]
        rows = np.fromiter(chain.from_iterable(self._terminal_rows), dtype=np.int64, count=sum(counts))
        return np.repeat(np.arange(self.n_envs), counts), rows

    def segments(self, env_indices: np.ndarray, rows: np.ndarray, horizon: int) -> Segments[th.Tensor]:
        """
        Cut windows that start at the given transitions. A window that reaches the end of its episode, or of the
        data, goes on with copies of its last transition, masked.

        :param env_indices: Shape (B,)
        :param rows: Rows of transitions, shape (B,)
        :param horizon: Number of transitions of a window
        :return: Windows, in CPU memory
        """
        column, steps = env_indices[:, None], np.arange(horizon)
        ahead = (rows[:, None] + steps) % self.n_rows
        mask = self.is_transition[column, ahead]
        mask = np.logical_and.accumulate(mask, axis=1)
        last = mask.sum(1, keepdims=True) - 1
        inside = (rows[:, None] + np.minimum(steps, last)) % self.n_rows
        states = np.concatenate([rows[:, None], (inside + 1) % self.n_rows], axis=1)
        return Segments(
            observations=self.observations[column, states],
            actions=self.actions[column, inside],
            rewards=self.rewards[column, inside],
            terminations=self.terminations[column, inside] & mask,
            mask=mask,
        ).map(th.from_numpy)

    def recent_episodes(self, n_transitions: int) -> list[tuple[np.ndarray, bool]]:
        """
        :param n_transitions: Number of newest rows to look at, over all environments
        :return: For each episode (or the part of it that is held), oldest first in each stream: its rewards, and
            whether it was cut off, by a time limit or from outside, rather than ended or still under way. Where all are
            under way, nothing says that they will ever end, and they count as cut off
        """
        env_indices, rows = self.recent_transitions(n_transitions)
        follows = (np.diff(rows) % self.n_rows == 1) & (np.diff(env_indices) == 0)
        boundaries = np.flatnonzero(~follows) + 1
        last = np.append(boundaries, len(rows)) - 1
        under_way = (rows[last] + 1) % self.n_rows == self.position[env_indices[last]] % self.n_rows
        cut_off = ~self.terminations[env_indices[last], rows[last]] & (~under_way | under_way.all())
        return list(zip(np.split(self.rewards[env_indices, rows], boundaries), cut_off.tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | self._used_rows()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._fill(state, state["position"])

    def _used_rows(self) -> dict[str, np.ndarray]:
        """Each of the arrays without the rows that were never written."""
        n_used = self._n_used()
        return {name: getattr(self, name)[:, :n_used] for name in ARRAYS}

    def _fill(self, rows: dict[str, np.ndarray], position: np.ndarray) -> None:
        """
        Replace the content.

        :param rows: The used rows of each of the arrays
        :param position: New value of ``position``
        """
        self.clear()
        for name in ARRAYS:
            getattr(self, name)[:, : rows[name].shape[1]] = rows[name]
        self.position[:] = position
        self._count()

    def save(self, file: IO[bytes]) -> None:
        """
        Write the content as plain arrays (npz).

        :param file: Open binary file
        """
        content = self._used_rows() | {"n_rows": np.array(self.n_rows), "position": self.position}
        np.savez(file, allow_pickle=False, format_version=np.array(FORMAT_VERSION), **content)

    def load(self, file: IO[bytes]) -> None:
        """
        Replace the content by that of a file, which must come from a store of the same shape.

        :param file: Open binary file
        :raises ValueError: If the file is damaged or does not fit; the present content is kept then
        """
        names = ("format_version", "n_rows", "position", *ARRAYS)
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
            ("rows per environment (`buffer_size`)", int(loaded["n_rows"]), self.n_rows),
            ("observation dimensions", loaded["observations"].shape[-1], self.observations.shape[-1]),
            ("action dimensions", loaded["actions"].shape[-1], self.actions.shape[-1]),
        ):
            if found != expected:
                raise ValueError(f"its number of {what} is {found}, here it is {expected}")
        if n_used > self.n_rows or any(len(loaded[name]) != self.n_envs for name in ARRAYS):
            raise ValueError("its arrays differ in length")
        self._fill(loaded, loaded["position"])


class ReplaySegmentSource:
    """
    Training data of the world model: windows of a store as it is now. Half of them are drawn from its newest part, and
    half from all of it: the policy is about to act near the newest states, and of a large store an even draw would
    hardly ever show them.

    :param store: The store, with one transition at least
    :param horizon: Number of transitions of a window
    :param n_recent: Number of rows that count as the newest part, over all environments
    :param rng: Random generator
    """

    def __init__(self, store: ReplayBuffer, horizon: int, n_recent: int, rng: np.random.Generator):
        self.replay_buffer = store
        self.horizon = horizon
        self.rng = rng
        self.recent = store.recent_transitions(n_recent)
        self.terminals = store.terminal_indices()
        is_terminal = store.terminations[self.recent]
        self.recent_terminals = self.recent[0][is_terminal], self.recent[1][is_terminal]
        recent_rate = RECENT_SHARE * is_terminal.mean()
        # Share of terminal transitions among those drawn, and share of recent ones among these
        self.termination_rate = (1 - RECENT_SHARE) * len(self.terminals[0]) / len(store) + recent_rate
        self.recent_terminal_share = recent_rate / self.termination_rate if recent_rate > 0 else 0.0

    def segments(self, n_segments: int) -> Segments[th.Tensor]:
        """
        :param n_segments: Number of windows
        :return: Windows that start at transitions drawn from the newest ones and from all
        """
        n_recent = self.rng.binomial(n_segments, RECENT_SHARE)
        recent = self._draw(self.recent, n_recent)
        everywhere = self.replay_buffer.sample_transitions(n_segments - n_recent, self.rng)
        return self._segments(recent, everywhere, self.horizon)

    def terminal_transitions(self, n_transitions: int) -> Segments[th.Tensor]:
        """
        :param n_transitions: Number of transitions
        :return: Windows of one transition, drawn like those of :meth:`segments` from the terminal ones
        """
        n_recent = self.rng.binomial(n_transitions, self.recent_terminal_share)
        recent = self._draw(self.recent_terminals, n_recent)
        everywhere = self._draw(self.terminals, n_transitions - n_recent)
        return self._segments(recent, everywhere, horizon=1)

    def _draw(self, starts: tuple[np.ndarray, np.ndarray], n_drawn: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :param starts: Streams and rows of transitions
        :param n_drawn: Number of draws, with replacement
        :return: Streams and rows of those drawn
        """
        env_indices, rows = starts
        chosen = self.rng.integers(max(len(rows), 1), size=n_drawn)
        return env_indices[chosen], rows[chosen]

    def _segments(
        self, some: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray], horizon: int
    ) -> Segments[th.Tensor]:
        """
        :param some: Streams and rows of transitions
        :param others: More of them
        :param horizon: Number of transitions of a window
        :return: Windows that start at all of these
        """
        env_indices, rows = (np.concatenate(both) for both in zip(some, others, strict=True))
        return self.replay_buffer.segments(env_indices, rows, horizon)

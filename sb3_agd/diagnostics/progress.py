"""Progress of a report."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(items: Sequence[Item], phase: str, is_shown: bool) -> Iterable[Item]:
    """
    Show the progress of a loop on the standard error stream: a bar on terminals, elsewhere one line when the loop begins.

    :param items: Items of the loop
    :param phase: What the loop does
    :param is_shown: Whether to show anything
    :return: The items
    """
    is_terminal = sys.stderr.isatty()
    if is_shown and not is_terminal:
        print(f"{phase} ({len(items)})", file=sys.stderr, flush=True)
    return tqdm(items, desc=phase, disable=not (is_shown and is_terminal))

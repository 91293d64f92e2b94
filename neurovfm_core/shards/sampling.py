"""Which volume when, and which batch: pure functions of seed and key."""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from neurovfm_core.errors import UsageError


def epoch_order(seed: int, epoch: int, ids: Iterable[str]) -> list[str]:
    """Return the ids in the order of one epoch.

    Every id draws its own place, so the order does not depend on the order given, and two ids keep
    their mutual order when others come or go.
    """
    prefix = hashlib.blake2b(repr((seed, "epoch", epoch)).encode(), digest_size=16)

    def place(one: str) -> tuple[bytes, str]:
        digest = prefix.copy()
        digest.update(one.encode())
        return digest.digest(), one

    return sorted(ids, key=place)


def pack_by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put sequences of different lengths into as few batches of at most `budget` tokens as one pass finds.

    Longest first, each into the fullest batch that still has room (best fit decreasing).

    Returns
    -------
    list of batches
        Each a list of indices into `lengths`, ascending; batches in the order of their first index.

    Raises
    ------
    UsageError
        A sequence alone exceeds the budget.
    """
    batches: list[list[int]] = []
    open_batches: list[tuple[int, int]] = []  # (room, batch), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > budget:
            raise UsageError(
                f"a sequence of {length} tokens does not fit a budget of {budget}",
                hint="raise the token budget, or lower the largest crop",
            )
        place = bisect_left(open_batches, (length, -1))
        if place < len(open_batches):
            room, batch = open_batches.pop(place)
        else:
            room, batch = budget, len(batches)
            batches.append([])
        batches[batch].append(index)
        insort(open_batches, (room - length, batch))
    return sorted(sorted(batch) for batch in batches)

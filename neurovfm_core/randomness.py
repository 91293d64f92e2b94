"""Random streams that belong to a key, never to an order."""

import hashlib

import numpy as np


def rng_for(seed: int, *keys: str | int) -> np.random.Generator:
    """Return the random stream that belongs to these keys.

    The same seed and keys give the same stream on any machine, in any order,
    with any number of workers.
    """
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return np.random.default_rng(list(digest))

"""Random numbers are derived from names, not remembered from history, so a resume needs counters only."""

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that is a pure function of ``seed`` and ``path``.

    ``path`` names the use, for example ``derive_seed(0, "augment", phase, epoch)``. Distinct paths give independent
    streams; ``1`` and ``"1"`` are distinct.
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

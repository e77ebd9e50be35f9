"""Reading a file whose content is known. Standard library only: anybody may import this."""

import hashlib
from pathlib import Path


class OtherContentError(ValueError):
    """A file that holds something else than it should."""


def read_verified(path: Path, digest: str | None) -> bytes:
    """Return the content of a file, read once; OtherContentError unless its SHA-256 (hex) is ``digest``, if given."""
    content = path.read_bytes()
    found = sha256(content)
    if digest not in (None, found):
        raise OtherContentError(f"{path} has the digest {found}, but {digest} was asked for: it has been changed")
    return content


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()

"""Records as earlier versions of this code made them; host, platform and paths are replaced, nothing else.

``SCHEMA_1``: by commit 7bc0f62, all that is named here. ``BEFORE_PHASES``: by commit 9a94b15, one run that was stopped
after step 40 of 63; what is saved of it knows no phases.
"""

import tarfile
from pathlib import Path

GROUP = "study"
METHODS = {
    "58f5c8df18de": "rigl_itop", "a3cef72c1f5f": "rigl_itop", "b01f0114d8d2": "dst", "c98d19c95080": "dst",
    "c06553390ec0": "rigl_itop grow=random", "81cb46de67ff": "rigl_itop grow=random",
    "eb906c34be42": "static", "e8953b43ffe0": "static", "a8b460641173": "static", "e78b3272ad24": "rigl_itop",
}  # fmt: skip
"""Id of each run -> its method."""

SCHEMA_1, BEFORE_PHASES = "schema1", "before_phases"

FAILED, PREEMPTED, WITH_CHECKPOINT = "a8b460641173", "e78b3272ad24", "58f5c8df18de"
"""The first two were submitted as jobs; all others are done."""


def unpack(root: Path, which: str = SCHEMA_1) -> Path:
    """Put old records below an output root, and return their group's folder."""
    root.mkdir(exist_ok=True)
    with tarfile.open(Path(__file__).parent / "records" / f"{which}.tar.gz") as archive:
        archive.extractall(root, filter="data")
    return root / GROUP

"""A tree of runs as no program would write it: names that bite, damaged, failed and copied runs, a renamed folder."""

import os
import shutil

LABELS = {
    "<script>alert(1)</script>": 10,
    '=cmd|"/C calc"!A0': 11,
    "+1": 12,
    "@SUM(A1)": 13,
    "-2": 14,
    "中文 é ±": 15,
    "\x1b[31mred\x1b[0m": 16,
    "two\nlines\ttab": 17,
    r"a^b~c\d{e}$f_g%h&i#j|k": 18,
    "\u202eright to left": 19,
    "x" * 300: 20,
}
"""Labels, each of a run of its own -> its seed."""


def make_hostile(root, add_run):
    """Add to a tree of runs what must change no row of it: a sweep of hostile labels, and more of what is there."""
    for place, (label, seed) in enumerate(LABELS.items()):
        changed = {"sparsity.label": label}
        add_run(root, "hostile", f"m{place}", seed, 0.5, label=label, changed=changed, command=f"hostile {label}")
    (add_run(root, "torn", "torn", 0, 0.5) / "run.json").write_text("{")
    (add_run(root, "torn", "status", 0, 0.5) / "status.json").write_text('{"state": "half')
    (root / "torn" / "empty").mkdir()
    (root / "torn" / "empty" / "run.json").touch()
    add_run(root, "failed", "failed", 5, state="failed")
    add_run(root, "diverged", "lost", 6, 0.4, state="diverged")
    run = sorted((root / "sweep").iterdir())[-1]
    for name in ("copy", "sweep/zcopy", "acopy/within"):
        shutil.copytree(run, root / name)
    os.rename(sorted((root / "sweep").iterdir())[0], root / "sweep" / "renamed")

"""Folders that cannot be listed, also for the superuser, whom permissions do not stop."""

import os
from pathlib import Path

import pytest


def close(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder be one that cannot be listed."""
    listing = os.scandir

    def scandir(path):
        if os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)

"""The commands of the pages on published codes work, and print what the pages say."""

import re
import shlex
from pathlib import Path

import pytest

from dst.legacy.__main__ import main
from dst.legacy.tables import programs

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "from_published_codes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
SHOWN = [block for language, block in BLOCKS if language == "text"]


def carried_out(command, capsys):
    start, words = "python -m dst.legacy ", shlex.split(command)
    assert command.startswith(start)
    assert main(words[len(start.split()) :]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(command, capsys):
    out = carried_out(command, capsys)
    assert out.startswith(("python run.py ", "CUDA_VISIBLE_DEVICES=0,1 torchrun "))
    assert "\n# read as " in out


def test_the_first_command_prints_what_the_page_shows(capsys):
    (shown,) = SHOWN
    assert carried_out(COMMANDS[0], capsys) == shown


def test_the_page_names_every_paper():
    papers = {paper for program in programs().values() for paper in program.papers}
    assert papers <= set(re.findall(r"`(\w+)`", PAGE))


def test_both_pages_refer_to_each_other():
    other = (REPOSITORY / "docs" / "published_codes.md").read_text(encoding="utf-8")
    assert "(published_codes.md)" in PAGE
    assert "(from_published_codes.md)" in other

"""Every link of every page leads to a file and a heading that are there."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, name
from tests.processes import REPOSITORY

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"<(?:img|source)[^>]*?(?:src|srcset)=\"([^\"]+)\"")


def without_code(text):
    return re.sub(r"^ {0,6}```.*?^ {0,6}```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text):
    """Return where a page's links and images lead."""
    text = re.sub(r"`[^`\n]*`(?!\])", "", without_code(text))
    return [one or other for one, other in _LINK.findall(text)] + _IMAGE.findall(text)


def anchors(text):
    """Return the anchors of a page's headings as GitHub makes them, with numbers behind those that are there twice."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", without_code(text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one) is not None for one in found)
        found.append(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def lost(page: Path, text: str):
    """Return the links of a page that lead nowhere."""
    found = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        is_there = path.exists() and path.is_relative_to(REPOSITORY)
        if not is_there or (anchor and anchor not in anchors(text if path == page else path.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert lost(page, page.read_text()) == []


def test_a_lost_link_is_found():
    page = REPOSITORY / "docs" / "concepts.md"
    text = "# One Word: *and* `two`\n"
    text += "[a](#one-word-and-two) [b](methods.md#agent) [`c`](../README.md)\n```\n[no](no.md)\n```\n"
    assert lost(page, text) == []
    text = '[a](#none) [b](methods.md#none) ![c](none.md) [d](../../etc) `[e](none)` <img src="none.svg">'
    assert lost(page, text) == ["#none", "methods.md#none", "none.md", "../../etc", "none.svg"]


def test_headings_of_one_name_are_numbered():
    assert anchors("# A b\n## A b\n## A b\n") == ["a-b", "a-b-1", "a-b-2"]


def test_every_page_is_reached_from_the_readme():
    """By following links, as a reader does."""
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text())]
    assert [name(page) for page in PAGES if page not in reached] == []

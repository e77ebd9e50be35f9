"""What a page holds, read as a browser would: elements, ids, links, tables, and what is wrong with its tags."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

EMPTY = {"meta", "link", "br", "img", "hr", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list["Element"]:
        """Return the elements of this name within this one."""
        found = [child for child in self.children if child.tag == tag]
        return found + [one for child in self.children for one in child.all(tag)]


class Page(HTMLParser):
    """A page that was read; ``wrong`` lists tags that do not fit."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.wrong: list[str] = []
        self.elements: list[Element] = []
        self.feed(html)
        self.close()
        self.wrong += [f"<{element.tag}> is not closed" for element in self.open[1:]]

    def handle_starttag(self, tag, attrs):
        element = self._add(tag, attrs)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self._add(tag, attrs)

    def handle_endtag(self, tag):
        if self.open[-1].tag != tag:
            self.wrong.append(f"</{tag}> in <{self.open[-1].tag}> at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.texts.append(data)

    def _add(self, tag, attrs):
        names = [name for name, _ in attrs]
        self.wrong += [f"<{tag}> has {name} twice" for name in {name for name in names if names.count(name) > 1}]
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        self.elements.append(element)
        return element

    def all(self, tag: str) -> list[Element]:
        return self.root.all(tag)

    def values(self, name: str) -> list[str]:
        """Return all values of an attribute."""
        return [value for element in self.elements if (value := element.attributes.get(name)) is not None]

    def table(self, caption_id: str) -> list[dict[str, str]]:
        """Return a table as a row of texts by heading, found by the id of its caption."""
        for table in self.all("table"):
            if table.all("caption")[0].children[0].attributes["id"] == caption_id:
                headings = [cell.text for cell in table.all("thead")[0].all("th")]
                rows = [[cell.text for cell in row.children] for row in table.all("tbody")[0].all("tr")]
                return [dict(zip(headings, row, strict=True)) for row in rows]
        raise KeyError(caption_id)

    def files(self) -> dict[str, str]:
        """Return the files that the page holds to save: name -> content."""
        links = {
            link.attributes["download"]: link.attributes["href"]
            for link in self.all("a")
            if "download" in link.attributes
        }
        return {name: base64.b64decode(uri.partition("base64,")[2]).decode() for name, uri in links.items()}

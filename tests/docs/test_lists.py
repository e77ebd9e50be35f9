"""The lists of the pages are complete: methods, models, data sets and the rest."""

import re

from dst.registry import members
from tests.docs.pages import read
from tests.processes import REPOSITORY


def options(group):
    return sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))


def named(page):
    return set(re.findall(r"`(\w+)`", read(page)))


def test_the_table_of_methods_is_complete():
    rows = re.findall(r"^\| `(\w+)` \| \S.*\|$", read("docs/methods.md"), flags=re.MULTILINE)
    assert sorted(rows) == options("sparsity")


def test_the_tour_names_every_method_correction_and_procedure():
    text = read("README.md")
    table = text[text.index("## Methods") : text.index("## From Python")]
    assert sorted(re.findall(r"`(\w+)`", table)) == options("sparsity")
    wrapped = [f"{kind}={name}" for kind in ("correction", "procedure") for name in options(kind)]
    assert sorted(re.findall(r"`((?:correction|procedure)=\w+)`", table)) == [
        name for name in sorted(wrapped) if name not in ("correction=none", "procedure=single")
    ]


def test_every_model_data_set_optimizer_rate_and_schedule_is_mentioned():
    mentioned = named("docs/data_and_models.md")
    for kind in ("model", "data", "optimizer", "lr"):
        assert set(members(kind)) <= mentioned, kind
    schedules = set(options("schedule")) - {"digits", "mnist"}  # which are named after their data
    assert schedules <= mentioned


def test_every_group_hardware_and_procedure_is_mentioned():
    groups = {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()} - {"hydra", "experiment"}
    assert groups == set(re.findall(r"^\| `(\w+)=` \|", read("docs/concepts.md"), flags=re.MULTILINE))
    assert set(options("hardware")) <= named("docs/performance.md")
    assert set(options("procedure")) <= named("docs/methods.md")


def test_every_benchmark_is_listed():
    listed = re.findall(r"^\| `python -m tests\.bench\.(\w+)` \|", read("docs/performance.md"), flags=re.MULTILINE)
    folder = REPOSITORY / "tests" / "bench"
    files = [path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()]
    assert sorted(listed) == sorted([*files, *(path.parent.name for path in folder.glob("*/__main__.py"))])


def test_the_readme_is_a_tour():
    assert len(read("README.md").splitlines()) <= 200


def test_every_page_of_the_documentation_is_in_its_index():
    there = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert there == set(re.findall(r"\]\((\w+\.md)\)", read("docs/README.md")))

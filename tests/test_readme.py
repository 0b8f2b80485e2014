"""The README tells the truth: its links stand, and so do the names that it gives."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def story() -> list[tuple[str, str]]:
    """The numbered links of "What happens when a payment is captured?": what each names, and where it leads."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## What happens when a payment is captured?")[1].split("\n## ")[0]
    steps = re.split(r"\n\d\. ", section)[1:]
    found = [re.search(r"\[`(\w+)`\]\(([^)]+)\)", step) for step in steps]
    return [(link[1], link[2]) for link in found if link]


def test_the_question_is_answered_in_five_links_one_a_folder() -> None:
    assert [path.split("/")[0] for _, path in story()] == ["handlers", "domain", "infra", "projections", "tests"]


@pytest.mark.parametrize(("name", "path"), story())
def test_each_link_leads_to_what_it_names(name: str, path: str) -> None:
    assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_our_own_pages_stands(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} leads to {target}"


def test_every_dependency_has_its_line() -> None:

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    names = [re.split(r"[\[~>=<]", requirement)[0] for requirement in wanted]
    assert [name for name in names if f"`{name}`" not in page] == []

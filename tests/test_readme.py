"""README and docs: every link leads to a file, and every path that they name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("domain", "infra", "projections", "handlers", "tests", "docs", "benchmarks", "examples")


def story() -> list[tuple[str, str]]:
    """Return the name and the target of each numbered link of "What happens when a payment is captured?"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## What happens when a payment is captured?")[1].split("\n## ")[0]
    steps = re.split(r"\n\d\. ", section)[1:]
    found = [re.search(r"\[`(\w+)`\]\(([^)]+)\)", step) for step in steps]
    return [(link[1], link[2]) for link in found if link]


def test_the_question_is_answered_by_five_links_one_per_folder() -> None:
    assert [path.split("/")[0] for _, path in story()] == ["handlers", "domain", "infra", "projections", "tests"]


@pytest.mark.parametrize(("name", "path"), story())
def test_each_link_leads_to_what_it_names(name: str, path: str) -> None:
    assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} leads to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_backticks_exists(page: Path) -> None:
    """A path starts with a top-level folder and may have a wildcard; a test file may be named without its folders."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"`((?:{'|'.join(OURS)})/[^`\s]*)`", text)
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []
    tests = re.findall(r"`(test_\w+\.py)`", text)
    assert [name for name in tests if not any((ROOT / "tests").rglob(name))] == []


def test_every_room_and_its_modules_are_on_the_map() -> None:
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    for top in ("infra", "projections", "handlers"):
        section = text.split(f"## {top}:")[1].split("\n## ")[0]
        for room in (init.parent for init in (ROOT / top).glob("*/__init__.py")):
            row = re.search(rf"^\| `{room.name}/` \| (.*) \|$", section, re.MULTILINE)
            assert row, room
            modules = {module.stem for module in room.glob("*.py")} - {"__init__", "__main__"}
            named = set(re.findall(r"`(\w+)`", row[1]))
            assert named == modules, room


def test_every_dependency_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    names = [re.split(r"[\[~>=<]", requirement)[0] for requirement in wanted]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_reporting_page_says_what_the_comments_in_the_database_say() -> None:
    views = ROOT / "infra" / "postgres" / "views"
    definitions = "".join(file.read_text(encoding="utf-8") for file in views.glob("*.sql"))
    comments = [
        *re.findall(r"COMMENT ON VIEW reporting\.(\w+) IS '([^']*)'", definitions),
        *re.findall(r'^    "(\w+)": "([^"]*)"', definitions, re.MULTILINE),
    ]
    page = (ROOT / "docs" / "reporting.md").read_text(encoding="utf-8")
    assert comments
    assert [name for name, comment in comments if f"| `{name}` | {comment} |" not in page] == []

"""The words: old phrases that read like a translation do not return."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = (".py", ".md", ".sql", ".typ", ".txt", ".html", ".yaml", ".yml", ".toml")
OLD_PHRASES = (
    "goes on in turn",
    "who has waited",
    "whoever got the stopper",
    "whoever relays",
    "say to each what became of it",
    "what leads to no append",
    "no event is like that",
    "is of no use to",
    "is believed in",
    "who may what",
    "nobody can unsay",
    "take leave of the server",
    "does not stand in the log",
    "was not signed as it stands",
    "whom it runs as",
    "a house over",
    "one behind another",
    "begins anew",
    "made anew",
    "begun anew",
    "none where",
    "goes on where it was",
    "what came of it",
    "was dealt with before",
    "to ask on from",
    "is no amount",
    "is nobody; write",
    "as its events tell it",
    "is read in the place",
    "one of the reasons of this module",
    "stands already",
    "is no quantity of",
    "which nobody is told",
    "a house in memory",
    "the real thing on real servers",
    "is told to nobody",
    "what was waited for",
    "figure that stands for itself",
    "measure the two in turn",
    "whoever projects",
    "takes the place in the stream",
    "does not serve:",
)


def pages() -> list[Path]:
    """Return all source and text files, except the changelog and this file."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    return [path for path in found if path.suffix in TEXTS and path not in (Path(__file__), ROOT / "CHANGELOG.md")]


def test_no_old_phrase_returns() -> None:
    found = []
    for page in pages():
        lines = page.read_text(encoding="utf-8")
        text = " ".join(re.sub(r"^\s*(#|--)", "", lines, flags=re.MULTILINE).split()).lower()
        found += [f"{page.relative_to(ROOT)}: {phrase}" for phrase in OLD_PHRASES if phrase in text]
    assert found == []

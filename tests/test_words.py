"""The words: old phrases, which read like a translation, do not come back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).relative_to(ROOT)
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
    "that it lives on",
    "to ask on from",
    "the wish that",
    "is no amount",
    "is nobody; write",
    "an address of its own is said",
)


def pages() -> list[Path]:
    """Every text that is kept, but the history of changes and this file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = (".py", ".md", ".sql", ".typ", ".txt", ".html", ".yaml", ".yml", ".toml")
    found = [Path(name) for name in listed.stdout.splitlines() if name.endswith(texts)]
    return [path for path in found if path not in (HERE, Path("CHANGELOG.md"))]


def test_no_old_phrase_comes_back() -> None:
    found = []
    for page in pages():
        lines = (ROOT / page).read_text(encoding="utf-8")
        text = " ".join(re.sub(r"^\s*(#|--)", "", lines, flags=re.MULTILINE).split()).lower()
        found += [f"{page}: {phrase}" for phrase in OLD_PHRASES if phrase in text]
    assert found == []

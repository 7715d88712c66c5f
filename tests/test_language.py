"""Code and documentation use plain English: none of these phrases, which readers stumble over."""

import re

from tests import REPOSITORY

PHRASES = {
    r"(is|are|was|be) told": "reports, returns, receives",
    r"whom": "rewrite with a noun",
    r"lest": "so that … not",
    r"is no (feature|number|TOML|JSON|request|key|text|list|integer)": "is not a …",
    r"on (its|their) way": "in flight, being sent",
    r"in company": "together with other rows",
    r"who (asks|comes|waits|left)": "a client that …",
    r"of late": "recent",
    r"in force": "active",
    r"anew": "again",
    r"stands? (in|at|below|above)": "is in, is at",
}


def test_code_and_documentation_avoid_unusual_phrases():
    files = list(REPOSITORY.glob("*.md"))
    for folder in ("app", "models", "docker", "tests"):
        files += (REPOSITORY / folder).rglob("*.md")
    for folder in ("app", "models"):
        files += (REPOSITORY / folder).rglob("*.py")
    found = []
    for file in files:
        name = file.relative_to(REPOSITORY)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for phrase, better in PHRASES.items():
                if match := re.search(rf"\b{phrase}\b", line):
                    found.append(f"{name}:{number}: {match[0]!r}; better: {better}")
    assert found == []

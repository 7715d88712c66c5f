"""Code and documentation use plain English, and variables have names that say what they are."""

import ast
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


def test_loop_variables_and_arguments_say_what_they_are():
    """`for key in keys`, not `for each in keys`."""
    found = []
    for folder in ("app", "models", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Name(id="each", ctx=ast.Store()) | ast.arg(arg="each"):
                        found.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}")
    assert found == []

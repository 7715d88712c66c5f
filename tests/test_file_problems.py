"""Problems of files that people write, in one line each."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.file_problems import first_problem, problems


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Files(Table):
    source: Literal["files"]
    files: tuple[int, ...] = Field((), max_length=2)


class Feed(Table):
    source: Literal["feed"]
    rounds: Annotated[int, Field(ge=3)] = 3


class Document(Table):
    name: str = Field("x", pattern="^[a-z]+$", max_length=5)
    data: Annotated[Files | Feed, Field(discriminator="source")] | None = None
    limits: dict[str, tuple[float, float]] = {}
    tables: dict[str, Feed] = {}
    mode: int | Literal["auto"] | None = None
    on: bool = False


def found(document: Any, **options: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Document.model_validate(document)
    return problems(caught.value, Document, document, **options)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"name": 7}, "name: must be a string"),
        ({"name": "A"}, "name: must match the pattern ^[a-z]+$"),
        ({"name": "abcdef"}, "name: must have at most 5 characters"),
        ({"nmae": "x"}, 'unknown key "nmae"; did you mean "name"?'),
        ({"colour": 1}, 'unknown key "colour" (known: name, data, limits, tables, mode, on)'),
        (
            {"data": {"source": "fles"}},
            'data.source: must be "files" or "feed"; did you mean "files"?',
        ),
        ({"data": {}}, 'data.source: required key is missing: "files" or "feed"'),
        ({"data": {"source": "files", "files": ["x"]}}, "data.files[0]: must be a whole number"),
        ({"data": {"source": "files", "files": 1}}, "data.files: must be an array"),
        ({"data": {"source": "files", "files": [1] * 3}}, "data.files: must have at most 2 items"),
        ({"data": {"source": "files", "feed": 1}}, 'unknown key "feed" in [data]'),
        ({"data": {"source": "feed", "rounds": 2}}, "data.rounds: must be at least 3"),
        ({"data": 3}, "data: must be a table"),
        ({"limits": {"a": [1]}}, "limits.a: item 2 is missing"),
        ({"limits": {"a": [1, "x"]}}, "limits.a[1]: must be a number"),
        ({"limits": []}, "limits: must be a table"),
        (
            {"tables": {"a": {"source": "feed", "round": 3}}},
            'unknown key "round" in [tables.a]; did',
        ),
        ({"mode": "atuo"}, 'mode: must be a whole number or "auto"; did you mean "auto"?'),
        ({"mode": 1.5}, 'mode: must be a whole number or "auto"'),
        ({"on": "maybe"}, "on: must be true or false"),
        ({"a" * 99: 1}, f'unknown key "{"a" * 64}…" (known: '),
        ({"limits": {"a\nb": 1}}, "limits.a\N{REPLACEMENT CHARACTER}b: must be an array"),
        (7, "must be a table"),
    ],
    ids=str,
)
def test_problem_has_place_and_rule(document, problem):
    (line,) = found(document)
    assert line.startswith(problem)
    assert "\n" not in line


def test_unknown_key_comes_first_and_others_are_counted():
    document = {"on": 3, "data": {"sourc": "feed"}, "nam": "x"}
    with pytest.raises(ValidationError) as caught:
        Document.model_validate(document)
    line = first_problem(caught.value, Document, document)
    assert line == 'unknown key "nam"; did you mean "name"? (and 2 more)'


def test_words_of_json_and_names_of_other_programs():
    assert found({"data": 3, "limits": {"a": 1}}, is_json=True) == [
        "data: must be an object",
        "limits.a: must be a list",
    ]
    line = 'unknown key "label"; did you mean "name"?'
    assert found({"label": 1}, usual_names={"label": "name"}) == [line]
    assert found({"name": "A"}, patterns={"^[a-z]+$": "must be lower case"}) == [
        "name: must be lower case"
    ]

"""What is wrong in a file that people write: place, rule, known values, in words of TOML or JSON.

pydantic checks such files; its messages speak of Python. A place is the path of the value, with the
name of an element where it has one: `inputs[item].vocabulary_size`.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.errors import did_you_mean

NOTHING: Mapping[str, str] = MappingProxyType({})

_MOST_KNOWN = 12  # keys that a message lists
_LONGEST_NAME = 64  # characters of a name that a message repeats

_RULES = {
    "missing": "required key is missing",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_type": "must be a whole number",
    "list_type": "must be an array",
    "mapping_type": "must be a table",
    "model_attributes_type": "must be a table",
    "model_type": "must be a table",
    "string_type": "must be a string",
    "tuple_type": "must be an array",
}
_JSON_RULES = {
    "must be a table": "must be an object",
    "must be an array": "must be a list",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def first_problem(
    error: ValidationError,
    schema: type[BaseModel],
    document: object,
    patterns: Mapping[str, str] = NOTHING,
    usual_names: Mapping[str, str] = NOTHING,
    *,
    is_json: bool = False,
) -> str:
    """Return the first problem of a file in one line, and how many more there are.

    Args:
        error: what pydantic found.
        schema: the pydantic model of the file.
        document: the content of the file.
        patterns: the rule that the pattern of a string stands for.
        usual_names: keys as other programs call them, to this file's name.
        is_json: whether the file is JSON, not TOML.
    """
    first, *more = problems(error, schema, document, patterns, usual_names, is_json=is_json)
    return f"{first} (and {len(more)} more)" if more else first


def problems(
    error: ValidationError,
    schema: type[BaseModel],
    document: object,
    patterns: Mapping[str, str] = NOTHING,
    usual_names: Mapping[str, str] = NOTHING,
    *,
    is_json: bool = False,
) -> list[str]:
    """Return the problems of a file, each in one line; see `first_problem`."""
    rules_at: dict[str, list[str]] = {}
    unknown: list[str] = []  # first: they often explain what is missing
    for detail in error.errors(include_url=False):
        if _follows_from_another(detail):
            continue
        if detail["type"] == "extra_forbidden":
            unknown.append(_unknown_key(detail["loc"], schema, document, usual_names))
            continue
        place, rule = _problem(detail, schema, document, patterns, is_json=is_json)
        rules = rules_at.setdefault(place, [])
        if rule not in rules:
            rules.append(rule)
    others = [f"{place}: {_either(r)}" if place else _either(r) for place, r in rules_at.items()]
    return unknown + others


def rule_of(
    error: ErrorDetails, patterns: Mapping[str, str] = NOTHING, *, is_json: bool = False
) -> str:
    """Return the rule that a value breaks; it repeats no value."""
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return _one_of(str(context["expected"]), error["input"])
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch":
            pattern = str(context["pattern"])
            return patterns.get(pattern, f"must match the pattern {pattern}")
        case "too_short" | "too_long" | "string_too_short" | "string_too_long" as name:
            limit = context.get("min_length", context.get("max_length"))
            what = "character" if name.startswith("string") else "item"
            bound = "least" if name.endswith("short") else "most"
            return f"must have at {bound} {limit} {what}{'' if limit == 1 else 's'}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" as name:
            key, words = _BOUNDS[name]
            bound = context[key]
            return f"must be {words} {f'{bound:g}' if isinstance(bound, float) else bound}"
        case name:
            message = error["msg"].replace("Input should be", "must be")
            rule = _RULES.get(name, f"{message[:1].lower()}{message[1:]}")
            return _JSON_RULES.get(rule, rule) if is_json else rule


def _problem(
    error: ErrorDetails,
    schema: type[BaseModel],
    document: object,
    patterns: Mapping[str, str],
    *,
    is_json: bool,
) -> tuple[str, str]:
    """Return the place and the rule of a problem; the place is empty for the whole file."""
    location = error["loc"]
    place = _place(schema, document, location)
    context = error.get("ctx", {})
    match error["type"]:
        case "missing" if location and isinstance(location[-1], int):
            return place, f"item {location[-1] + 1} is missing"
        case "missing" if location:
            return _joined(place, str(location[-1])), _missing(_type_at(schema, location))
        case "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            kinds = [_step(member, tag)[0] for member in _alternatives(_type_at(schema, location))]
            return _joined(place, tag), _missing(*kinds)
        case "union_tag_invalid":
            tag = _joined(place, str(context["discriminator"]).strip("'"))
            return tag, _one_of(str(context["expected_tags"]), context["tag"])
    return place, rule_of(error, patterns, is_json=is_json)


def _unknown_key(
    location: Sequence[str | int],
    schema: type[BaseModel],
    document: object,
    usual_names: Mapping[str, str],
) -> str:
    key, known = str(location[-1]), _keys_at(schema, location[:-1])
    table = _place(schema, document, location[:-1])
    where = "" if not table else f" in {table}" if "[" in table else f" in [{table}]"
    usual = usual_names.get(key)
    nearest = f'; did you mean "{usual}"?' if usual in known else did_you_mean(key, known)
    return f'unknown key "{_cut(key)}"{where}{nearest or _listing(known)}'


def _follows_from_another(error: ErrorDetails) -> bool:
    """Whether another problem is the only reason for this one.

    An array without its wrong elements is too short; a default is made of values that are right.
    """
    if error["type"] == "default_factory_not_called":
        return True
    least = error.get("ctx", {}).get("min_length", 0)
    sent = error["input"]
    return error["type"] == "too_short" and isinstance(sent, Sequence) and len(sent) >= least


def _place(schema: type[BaseModel], document: object, location: Sequence[str | int]) -> str:
    """Return the path of a value.

    pydantic puts the alternatives of unions into its places, and keys that are missing. They are
    not in the document, so they are left out.
    """
    path, annotation = "", schema
    for part in location:
        annotation, is_alternative = _step(annotation, part)
        if is_alternative:
            continue
        if isinstance(document, Mapping) and part in document:
            document = document[part]
            path = _joined(path, str(part))
        elif isinstance(part, int) and isinstance(document, list | tuple) and part < len(document):
            document = document[part]
            path += f"[{_name_of(document, part)}]"
    return path


def _name_of(element: object, position: int) -> str:
    name = element.get("name") if isinstance(element, Mapping) else None
    return _cut(name) if isinstance(name, str) and name else str(position)


def _joined(path: str, key: str) -> str:
    return f"{path}.{_cut(key)}" if path else _cut(key)


def _cut(name: str) -> str:
    """Return a name as part of one line."""
    name = "".join(
        character if character.isprintable() else "�" for character in name[: _LONGEST_NAME + 1]
    )
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"


def _one_of(expected: str, sent: object) -> str:
    """Return the rule for a value that must be one of some, as pydantic lists them."""
    names = expected.split("'")[1::2]
    nearest = did_you_mean(sent, names) if isinstance(sent, str) else ""
    if " or " not in expected:  # tags are listed with commas alone
        expected = " or ".join(expected.rsplit(", ", 1))
    return f"must be {expected}{nearest}".replace("'", '"')


def _either(rules: Sequence[str]) -> str:
    """Join the rules of a value that may be one of several kinds."""
    first, *others = rules
    return " or ".join([first, *(rule.removeprefix("must be ") for rule in others)])


def _listing(keys: Iterable[str]) -> str:
    known = list(keys)
    more = ", …" if len(known) > _MOST_KNOWN else ""
    return f" (known: {', '.join(known[:_MOST_KNOWN])}{more})" if known else ""


def _missing(*kinds: Any) -> str:  # noqa: ANN401
    """Return the rule for a key that is missing; where it must be one of some names, with them."""
    names = [f'"{name}"' for kind in kinds for name in get_args(kind) if isinstance(name, str)]
    if not names or any(get_origin(kind) is not Literal for kind in kinds):
        return _RULES["missing"]
    listed = " or ".join(", ".join(names).rsplit(", ", 1))
    return f"{_RULES['missing']}: {listed}"


def _type_at(schema: type[BaseModel], location: Sequence[str | int]) -> Any:  # noqa: ANN401
    """Return the type of the value at a place."""
    annotation: Any = schema
    for part in location:
        annotation, _ = _step(annotation, part)
    return annotation


def _keys_at(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at a place."""
    for model in _alternatives(_type_at(schema, location)):
        if isinstance(model, type) and issubclass(model, BaseModel):
            return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _step(annotation: Any, part: str | int) -> tuple[Any, bool]:  # noqa: ANN401
    """Return the type of a part of a place, and whether it is an alternative of a union."""
    kinds = _alternatives(annotation)
    if len(kinds) > 1:
        models = [
            model for model in kinds if isinstance(model, type) and issubclass(model, BaseModel)
        ]
        tagged = [model for model in models if _has_tag(model, part)]
        return next(iter(tagged or models), None), True
    (kind,) = kinds
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        return (fields[str(part)].annotation if part in fields else None), False
    inside = get_args(kind)
    if get_origin(kind) in (dict, Mapping):
        return inside[1], False
    if isinstance(part, int) and inside:
        return inside[part if part < len(inside) and Ellipsis not in inside else 0], False
    return None, False


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401
    """Return the members of a union other than None; of any other type, itself."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [
        kind
        for member in get_args(annotation)
        if member is not NoneType
        for kind in _alternatives(member)
    ]


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())

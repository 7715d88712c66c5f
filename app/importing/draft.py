"""Draft the description of a module from elsewhere, from its signature and from trial calls.

The draft is a TOML file for `gatehouse import --config`. It is tried before it is printed. What no
call can tell, such as which features belong to the user, is guessed by name and marked to be
checked.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch
from torch import Tensor

from app.artifacts.loader import load_module
from app.artifacts.program import fields
from app.errors import ArtifactInvalid
from app.importing.description import ForeignInvalid, ForeignModel, validated
from app.importing.forms import Caller, Fit, Form, find, padding_of
from app.importing.signature import Signature, Slot, Table, read_signature
from app.importing.trial import CPU, NOT_TORCHSCRIPT, examine

_USERS = re.compile(
    r"user|uid|member|hist|seq|recent|behavi|session|past|watch|bought|(^|[^a-z])(age|gender|sex|city)([^a-z]|$)",
    re.IGNORECASE,
)
_ITEMS = re.compile(r"target|cand|ad_?id|adgroup", re.IGNORECASE)
_NAME_IT = "   # its name?"
_MANY_ROWS = 257


@dataclass(frozen=True, slots=True)
class _Variant:
    """What a description adds so that its trial may succeed."""

    at_least: bool = False
    empty: bool = False
    ranges: bool = False


_VARIANTS = (
    _Variant(),
    _Variant(at_least=True),
    _Variant(ranges=True),
    _Variant(at_least=True, empty=True),
    _Variant(at_least=True, empty=True, ranges=True),
)


def draft(content: bytes, name: str) -> str:
    """Return a description in TOML, with comments on what to check.

    Args:
        content: the bytes of a TorchScript file.
        name: proposed as the model's name.

    Raises:
        ArtifactInvalid: the file is not TorchScript, or no call of the module succeeded.
    """
    try:
        module = load_module(content, CPU)
    except ArtifactInvalid as error:
        raise ArtifactInvalid(f"{NOT_TORCHSCRIPT} ({error})") from error
    signature = read_signature(module)
    caller = Caller(module, signature)
    fit = find(caller, _float_type(module))
    returned = caller.outputs(fit.forms, fit.sizes, rows=_MANY_ROWS)
    tasks = _unique(_tasks(returned))
    notes = "".join(f"# {note}\n" for note in (*_optional(signature), *_left_out(returned)))
    reasons: dict[str, str] = {}  # by description
    for variant in _VARIANTS:
        body = "\n".join(_lines(name, signature, fit, tasks, variant)) + "\n"
        if body in reasons:
            continue
        reason = _problem(content, body)
        if reason is None:
            status = "It imports as it is.\n# A line with a question mark is a guess: check it."
            return _head(status, notes) + body
        reasons[body] = reason
    body, reason = next(iter(reasons.items()))
    return _head(f"It does not import yet: {reason}", notes) + body


def _head(status: str, notes: str) -> str:
    return (
        "# Drafted from the module's signature and from trial calls. "
        f"{status}\n"
        f"# All keys: gatehouse import --help.\n{notes}\n"
    )


def _problem(content: bytes, text: str) -> str | None:
    """Why a description cannot be imported; None if it can."""
    try:
        model: ForeignModel = validated(tomllib.loads(text), "")
        examine(content, model)
    except (ArtifactInvalid, ForeignInvalid) as error:
        return str(error)
    return None


def _float_type(module: torch.jit.ScriptModule) -> str:
    dtypes = [tensor.dtype for tensor in (*module.parameters(), *module.buffers())]
    return "float64" if torch.float64 in dtypes and torch.float32 not in dtypes else "float32"


def _lines(
    name: str, signature: Signature, fit: Fit, tasks: Sequence["_Task"], variant: _Variant
) -> Iterator[str]:
    features = _features(signature, fit)
    yield f"name = {_text(name)}"
    if signature.is_dict:
        yield 'style = "dict"'
    ranges = (
        [feature.name for feature in features if feature.kind == "dense"] if variant.ranges else []
    )
    if ranges:
        pairs = ", ".join(f"{_text(dense)} = [0.0, 1.0]" for dense in ranges)
        yield f"ranges = {{ {pairs} }}   # values to try it with?"
    unused = [feature.name for feature in features if not feature.slot.is_used]
    if unused:
        yield f"unused = [{', '.join(map(_text, unused))}]   # nothing reads it"
    for feature in features:
        if feature.kind != "length":
            yield from ("", "[[inputs]]", *feature.lines())
    for slot, form in zip(signature.slots, fit.forms, strict=True):
        own = [feature for feature in features if feature.slot is slot]
        lists = [feature for feature in features if feature.kind == "id_list"]
        yield from ("", "[[arguments]]", f"name = {_text(slot.name)}")
        yield f"pack = [{', '.join(_pack(slot, form, own, lists, variant))}]"
        yield f'dtype = "{form.dtype}"'
        if form.rank == 1:
            yield "rank = 1"
    for task in tasks:
        yield from ("", "[[tasks]]", *task.lines)


def _pack(
    slot: Slot,
    form: Form,
    own: Sequence["_Feature"],
    lists: Sequence["_Feature"],
    variant: _Variant,
) -> Iterator[str]:
    """The parts of an argument."""
    at_least = ", at_least = 1" if variant.at_least else ""
    if form.kind in ("length", "mask", "padding"):
        nearest = max(
            lists, key=lambda feature: SequenceMatcher(None, feature.name, slot.name).ratio()
        )
        yield f'{{ take = "{form.kind}", of = {_text(nearest.name)}{at_least} }}'
        return
    for feature in own:
        if feature.kind == "length":
            owner = next(other for other in own if other.kind == "id_list")
            yield f'{{ take = "length", of = {_text(owner.name)}{at_least} }}'
        elif feature.kind == "id_list" and variant.empty:
            row = 1 if feature.padding == 0 else 0
            yield f'{{ take = "ids", of = {_text(feature.name)}, empty = {row} }}'
        else:
            yield _text(feature.name)


@dataclass(frozen=True, slots=True)
class _Feature:
    """One `[[inputs]]` table; or, with the kind `length`, a column that is derived."""

    name: str
    slot: Slot
    kind: str
    size: int
    max_length: int = 0
    padding: int = 0
    note: str = ""
    any_length: bool = False

    def lines(self) -> Iterator[str]:
        """The keys, with comments."""
        named = _USERS.search(self.name) is not None and _ITEMS.search(self.name) is None
        yield f"name = {_text(self.name)}{self.note}"
        yield f'side = "{"user" if named else "candidate"}"   # user or candidate?'
        yield f'kind = "{self.kind}"'
        if self.kind == "dense":
            yield f"dim = {self.size}"
            return
        yield f"vocabulary_size = {self.size}"
        row = 1 if self.kind == "id_list" and self.padding == 0 else 0
        yield f"# unknown = {row}   # is there a row for unknown ids? without it they are errors"
        if self.kind == "id_list":
            note = "   # it takes any length: which?" if self.any_length else ""
            yield f"max_length = {self.max_length}{note}"
            yield "# With a derived length or mask, no id in a list may be the padding: error 422."
            yield f"padding = {self.padding}   # the row that pads lists in training?"
            yield 'padding_side = "right"   # right or left, in training?'


def _features(signature: Signature, fit: Fit) -> list[_Feature]:
    """The features of all slots that hold any; lengths and masks are derived."""
    features: list[_Feature] = []
    for slot, form, width in zip(signature.slots, fit.forms, fit.sizes.widths, strict=True):
        name = _feature_name(slot.name)
        if form.kind == "matrix":
            features += _columns(slot, name, width)
        elif form.kind == "dense":
            features.append(_Feature(name, slot, "dense", width))
        elif slot.table is not None and form.kind == "id":
            features.append(_Feature(name, slot, "id", slot.table.rows))
        elif slot.table is not None and form.kind == "list":
            rows, length = slot.table.rows, fit.sizes.length
            padding, any_length = padding_of(slot), fit.any_length
            features.append(
                _Feature(name, slot, "id_list", rows, length, padding, any_length=any_length)
            )
    return features


def _columns(slot: Slot, name: str, width: int) -> Iterator[_Feature]:
    """The columns of a matrix: those that index a table are ids, those between are numbers."""
    taken: dict[int, tuple[int, Table | None]] = {
        first: (min(last, width), table) for (first, last), table in slot.columns.items()
    }
    taken |= {position: (position + 1, None) for position in slot.lengths}
    done = 0
    for first, (last, table) in [*sorted(taken.items()), (width, (width, None))]:
        if first > done:
            yield _Feature(f"{name}_{done}", slot, "dense", first - done, note=_NAME_IT)
        if table is None and last > first:
            yield _Feature(f"{name}_{first}", slot, "length", 1)
        elif table is not None and last - first == 1:
            yield _Feature(f"{name}_{first}", slot, "id", table.rows, note=_NAME_IT)
        elif table is not None:
            padding = table.padding or 0
            yield _Feature(
                f"{name}_{first}", slot, "id_list", table.rows, last - first, padding, _NAME_IT
            )
        done = max(done, last)


@dataclass(frozen=True, slots=True)
class _Task:
    """One `[[tasks]]` table."""

    name: str
    keys: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The keys, with comments."""
        return (f"name = {_text(self.name)}", *self.keys)


def _unique(tasks: Iterable[_Task]) -> list[_Task]:
    """The tasks, those with the name of an earlier one with a number behind it."""
    by_name: dict[str, _Task] = {}
    for task in tasks:
        name, number = task.name, 2
        while name in by_name or name == "rank_score":  # which every model has
            name, number = f"{task.name}_{number}", number + 1
        by_name[name] = replace(task, name=name)
    return list(by_name.values())


def _tasks(returned: object) -> Iterator[_Task]:
    """A task for every output that has one number per row."""
    if isinstance(returned, dict):
        for key, value in returned.items():
            if isinstance(value, Tensor) and _is_column(value):
                yield _task(str(key), value, _text(str(key)))
    elif isinstance(returned, tuple | list):
        names = fields(returned) if isinstance(returned, tuple) else ()
        for position, value in enumerate(returned):
            if isinstance(value, Tensor) and _is_column(value):
                name = names[position] if names else f"task_{position + 1}"
                yield _task(name, value, _text(name) if names else str(position))
    elif isinstance(returned, Tensor) and _is_column(returned):
        yield _task("score", returned)
    elif isinstance(returned, Tensor) and returned.ndim == 2:
        if returned.shape[1] == 2 and torch.allclose(returned.sum(1), torch.ones(len(returned))):
            yield _task("score", returned[:, 1], column=1)  # the classes no and yes
            return
        for column in range(returned.shape[1]):
            yield _task(f"task_{column + 1}", returned[:, column], column=column)


def _optional(signature: Signature) -> Iterator[str]:
    """Name the arguments that the description leaves out."""
    for name in signature.optional:
        yield f"Left out: argument {_text(name)}, which has a default. Requests cannot change it."


def _left_out(returned: object) -> Iterator[str]:
    """Name the outputs that are no task, and say how one becomes a task."""
    elements: Iterable[tuple[str, object]] = ()
    if isinstance(returned, dict):
        elements = ((_text(str(key)), value) for key, value in returned.items())
    elif isinstance(returned, tuple | list):
        names = fields(returned) if isinstance(returned, tuple) else ()
        paths = map(_text, names) if names else map(str, range(len(returned)))
        elements = zip(paths, returned, strict=True)
    for path, value in elements:
        if not isinstance(value, Tensor):
            yield f"Left out: output {path}, which is no tensor."
        elif value.ndim == 2 and not _is_column(value):
            how = f"output = {{ path = {path}, column = 0 }}"
            yield f"Left out: output {path}, of {value.shape[1]} columns. A task takes one: {how}."
        elif not _is_column(value):
            yield f"Left out: output {path}, which has {value.ndim} dimensions."


def _is_column(output: Tensor) -> bool:
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def _task(output: str, values: Tensor, path: str | None = None, column: int | None = None) -> _Task:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", output).strip("_")
    if not name or not name[0].isalpha():
        name = f"task_{name}".rstrip("_")
    is_probability = bool(((values >= 0) & (values <= 1)).all())
    gives = "probability" if is_probability else "logit"
    keys = [
        f'gives = "{gives}"   # probability, logit, log-probability, [log-|log1p-]seconds, number?',
    ]
    if column is not None:
        keys.append(f"output = {{ column = {column} }}")
    elif path is not None:
        keys.append(f"output = {{ path = {path} }}")
    return _Task(name[:60], tuple(keys))


def _feature_name(name: str) -> str:
    """A feature name for an argument: the same, unless it has characters that no name has."""
    allowed = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", name).strip().lstrip(".")
    return allowed[:64] or "input"


def _text(value: str) -> str:
    """A TOML string."""
    return json.dumps(value, ensure_ascii=False)  # every JSON string is a TOML string

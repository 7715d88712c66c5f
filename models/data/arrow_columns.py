"""Convert Arrow arrays to NumPy columns and flag invalid rows.

Every function takes an array of `n` rows (of any type from Parquet, of strings from CSV) and
returns its values and the invalid rows, bool `[n]`. The value of an invalid row is meaningless.
"""

import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from app.artifacts.encoding import (
    Hashed,
    Hashes,
    Id,
    Listed,
    Vocabulary,
    hash_integers,
    hash_strings,
    rows_of,
)
from models.data.dataset import PADDING, UNKNOWN

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Text that stands for a missing number, in lower case."""
TRUE_WORDS, FALSE_WORDS = ("true", "t", "yes", "y"), ("false", "f", "no", "n")
"""Text that stands for a label, in lower case."""
_WORDS = dict.fromkeys(TRUE_WORDS, 1.0) | dict.fromkeys(FALSE_WORDS, 0.0)
_DATE = re.compile(r"\s*(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})([ T]|$)")
_EXACT = 2.0**53  # float64 holds every integer up to here


def numbers(array: pa.Array, decimal: str = ".") -> tuple[Floats, Flags]:
    """Floats `[n]`, NaN for null and `MISSING_WORDS`; what is not a number is invalid.

    Args:
        array: of numbers or of text.
        decimal: the sign between the whole part and the fraction, in text.
    """
    if not is_text(array.type) and not is_number(array.type):
        null = np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))
        return np.full(len(array), math.nan), ~null
    if is_text(array.type):
        array = pc.utf8_trim_whitespace(pc.cast(array, pa.string()))
        if decimal != ".":
            array = pc.replace_substring(array, decimal, ".")
        missing = pc.is_in(pc.utf8_lower(array), value_set=pa.array(MISSING_WORDS))
        array = pc.if_else(missing, pa.scalar(None, pa.string()), array)
    try:
        return _float64(array), np.zeros(len(array), dtype=np.bool_)
    except pa.ArrowInvalid:
        values = [_number(value) for value in array.to_pylist()]
    wrong = np.array([value is None for value in values])
    return np.array([math.nan if value is None else value for value in values]), wrong


def _float64(array: pa.Array) -> Floats:
    floats = pc.cast(array, pa.float64())
    return np.asarray(pc.fill_null(floats, math.nan).to_numpy(zero_copy_only=False))


def _number(text: str | None) -> float | None:
    if text is None:
        return math.nan
    try:
        return _WORDS[text.lower()] if text.lower() in _WORDS else float(text)
    except ValueError:
        return None


def integers(array: pa.Array) -> tuple[Integers, Flags, Flags]:
    """Integers `[n]`, the null rows, and the invalid rows: not an integer, or outside int64."""
    null = np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))
    wrong = np.zeros(len(array), dtype=np.bool_)
    if pa.types.is_floating(array.type):  # pandas stores integers with missing values as floats
        null |= np.isnan(_float64(array))
    values = np.zeros(len(array), dtype=np.int64)
    try:
        whole = pc.cast(array.filter(pa.array(~null)), pa.int64())
        values[~null] = whole.to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        for row, value in enumerate(array.to_pylist()):
            try:
                values[row] = 0 if null[row] else _integer(value)
            except (ValueError, OverflowError):
                wrong[row] = True
    return values, null, wrong


def _integer(value: str | float) -> int:
    """The integer of `12`, `"12"`, `12.0` or `"12.0"`.

    Raises:
        ValueError: the value is not an integer, or it is a float too large to be exact.
    """
    try:
        return int(value) if isinstance(value, str) else int(str(value))
    except ValueError:
        number = float(value)
    if not number.is_integer() or abs(number) > _EXACT:
        raise ValueError(value)
    return int(number)


def labels(
    array: pa.Array, positive: Sequence[str | int], decimal: str = "."
) -> tuple[Floats, Flags]:
    """Labels `[n]`, NaN for null: 1 for one of `positive`, else 0; without any, numbers."""
    if not positive:
        return numbers(array, decimal)
    null = np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))
    values = np.where(null, math.nan, is_one_of(array, positive))
    return values, np.zeros(len(array), dtype=np.bool_)


def hashes(array: pa.Array) -> tuple[Hashes, Flags]:
    """A hash of each value, string or integer, uint64 `[n]`; null is invalid."""
    if pa.types.is_integer(array.type):
        values, null, wrong = integers(array)
        return hash_integers(values, seed=0), null | wrong
    row, distinct = _distinct(array)
    return np.append(hash_strings(distinct, seed=0), np.uint64(0))[row], row < 0


def ids(
    array: pa.Array, encoding: int | Hashed | Listed, vocabulary: Vocabulary
) -> tuple[Integers, Flags]:
    """Rows of an embedding table `[n]`; `UNKNOWN` for null and for an id without a row.

    Args:
        array: of ids.
        encoding: how ids become rows; a number is the vocabulary size of ids that are rows.
        vocabulary: used by `Listed`.
    """
    if isinstance(encoding, int):
        row, null, wrong = integers(array)
        return np.where((row >= 0) & (row < encoding) & ~null, row, UNKNOWN), wrong
    if encoding.ids == "int64" and isinstance(encoding, Hashed):
        values, null, wrong = integers(array)
        return np.where(null, UNKNOWN, rows_of(encoding, values.tolist(), vocabulary)), wrong
    if encoding.ids == "int64":
        values, null, wrong = integers(array)
        array = pa.array(values, mask=null)
    else:
        wrong = np.zeros(len(array), dtype=np.bool_)
    index, distinct = _distinct(array)
    rows = np.append(rows_of(encoding, distinct, vocabulary), UNKNOWN)  # the last is for nulls
    return np.maximum(rows, UNKNOWN)[index], wrong


def distinct_ids(array: pa.Array, id_type: str) -> dict[Id, int]:
    """Number of occurrences of each id."""
    if id_type == "int64":
        values, null, wrong = integers(array)
        array = pa.array(values, mask=null | wrong)
    index, distinct = _distinct(array)
    counts = np.bincount(index[index >= 0], minlength=len(distinct))
    return {
        identifier: int(count)
        for identifier, count in zip(distinct, counts, strict=True)
        if identifier != ""
    }


def _distinct(array: pa.Array) -> tuple[Integers, list[Id]]:
    """The index of each row in the distinct values, -1 for null, and the distinct values."""
    if not pa.types.is_dictionary(array.type):
        array = pc.dictionary_encode(array)
    index = pc.fill_null(pc.cast(array.indices, pa.int64()), -1)
    return np.asarray(index.to_numpy(zero_copy_only=False)), array.dictionary.to_pylist()


def lists(array: pa.Array, separator: str) -> tuple[pa.Array, Integers]:
    """The elements of all lists in one array, and the length of each list `[n]`.

    Text is split at `separator`, or read as JSON if it starts with a bracket; null is an empty
    list. Invalid JSON is one element.
    """
    if _is_text(array.type):
        if pc.any(pc.starts_with(array, "[")).as_py():
            return _json_lists(array, separator)
        parts = pc.split_pattern(pc.utf8_trim(array, separator), separator)
        lengths = _lengths(parts)
        flat = parts.flatten()
        filled = np.asarray(pc.not_equal(flat, "").to_numpy(zero_copy_only=False), dtype=np.bool_)
        owner = np.repeat(np.arange(len(array)), lengths)[filled]
        return flat.filter(pa.array(filled)), np.bincount(owner, minlength=len(array))
    return array.flatten(), _lengths(array)


def _json_lists(array: pa.Array, separator: str) -> tuple[pa.Array, Integers]:
    lists = [_json_list(text or "", separator) for text in array.to_pylist()]
    flat = [element for elements in lists for element in elements]
    return pa.array(flat, pa.string()), np.array([len(elements) for elements in lists])


def _json_list(text: str, separator: str) -> list[str]:
    if text.startswith("["):
        try:
            return [str(element) for element in json.loads(text)]
        except json.JSONDecodeError:
            return [text]
    return [part for part in text.split(separator) if part]


def _lengths(array: pa.Array) -> Integers:
    lengths = pc.fill_null(pc.cast(pc.list_value_length(array), pa.int64()), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False))


def id_lists(
    array: pa.Array,
    separator: str,
    max_length: int,
    rows: Callable[[pa.Array], tuple[Integers, Flags]],
) -> tuple[Integers, Flags]:
    """The first `max_length` ids of each list as rows `[n, max_length]`, padded.

    Args:
        array: of lists or of text.
        separator: between ids in text.
        max_length: of a list.
        rows: converts ids to rows.
    """
    elements, lengths = lists(array, separator)
    values, bad = rows(elements)  # [Σ lengths]
    owner = np.repeat(np.arange(len(array)), lengths)
    position = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = position < max_length
    filled = np.full((len(array), max_length), PADDING)  # [n, max_length]
    filled[owner[kept], position[kept]] = values[kept]
    wrong = np.zeros(len(array), dtype=np.bool_)
    wrong[owner[bad]] = True
    return filled, wrong


def dense_lists(
    array: pa.Array, separator: str, dim: int, decimal: str = "."
) -> tuple[Floats, Flags]:
    """Lists of exactly `dim` numbers as `[n, dim]`, NaN for null; other lists are invalid."""
    elements, lengths = lists(array, separator)
    values, bad = numbers(elements, decimal)  # [Σ lengths]
    fits = lengths == dim
    null = np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))
    wrong = ~fits & ~null
    owner = np.repeat(np.arange(len(array)), lengths)
    filled = np.full((len(array), dim), math.nan)  # [n, dim]
    filled[fits] = values[fits[owner]].reshape(-1, dim)
    wrong[owner[bad]] = True
    return filled, wrong


def is_one_of(array: pa.Array, values: Sequence[object]) -> Flags:
    """The rows whose value, compared as text, is one of `values`."""
    index, distinct = _distinct(array)
    chosen = [str(value) in set(map(str, values)) for value in distinct]
    return np.array([*chosen, False])[index]  # the last is for nulls


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is a string type, dictionary-encoded or not."""
    return _is_text(kind.value_type) if pa.types.is_dictionary(kind) else _is_text(kind)


def is_date(kind: pa.DataType) -> bool:
    """Whether a type is a date, a time or a timestamp."""
    return bool(pa.types.is_temporal(kind))


def looks_like_date(text: str | None) -> bool:
    """Whether a text begins like a date: 2024-01-31, 31.1.2024, 1/31/24."""
    return text is not None and _DATE.match(text) is not None


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is an integer, float or boolean type."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def may_be_integer(kind: pa.DataType) -> bool:
    """Whether values of a type may be integers: integers, or floats that are whole numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def element_type(kind: pa.DataType) -> pa.DataType | None:
    """The element type of a list type; None if it is not a list type."""
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return kind.value_type if is_list else None

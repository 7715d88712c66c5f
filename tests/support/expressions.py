"""Expressions to be compiled: random good ones, attacks, mutations of both, and a naive twin."""

import random
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from app.ranking.expression import LARGEST, UNARY_FUNCTIONS

GOOD = (
    "click**0.8 * (1 + w.like*like) * log1p(dwell)",
    "0.2*click + 0.8*like - w.hide * hide",
    "min(click, like, 0.5) / max(dwell, 1e-3)",
    "clip(log(click), -9, 0) + sqrt(abs(like - .5)) ** -w.fresh",
    "-click ** -2 + +like - - dwell",
)

ATTACKS: tuple[str, ...] = (
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "click.__class__",
    "click.like",
    "w.__class__.__mro__",
    "w.like.__class__",
    "w['like']",
    "w.like.real",
    "getattr(click, 'shape')",
    "eval(click)",
    "exec('x=1')",
    "open('/etc/passwd')",
    "print(click)",
    "lambda: click",
    "(lambda x: x)(click)",
    "[click for click in (1,)]",
    "[x for x in click]",
    "{click}",
    "{'a': click}",
    "(click := 1)",
    "click = 1",
    "click; like",
    "f'{click}'",
    "'click'",
    '"click"',
    "b'click'",
    "click if like else dwell",
    "click and like",
    "not click",
    "click < like",
    "click == like",
    "click in like",
    "click @ like",
    "click // like",
    "click % like",
    "click | like",
    "~click",
    "click << 9999999999",
    "click, like",
    "(click, like)",
    "*click",
    "log(*click)",
    "log(**click)",
    "log(x=click)",
    "log(click",
    "log()",
    "log(click,)",
    "click()",
    "click(like)",
    "(click)(like)",
    "(click)like",
    "2click",
    "click 2",
    "1_000*click",
    "0x10*click",
    "0b1*click",
    "1j*click",
    "1e5x*click",
    "1..2*click",
    "1.2.3*click",
    "inf*",
    "nan*",
    "None*click.x",
    "9" * 400 + "*click",
    "click\x00",
    "\x00click",
    "click\\\n+like",
    "click # like",
    "ｃｌｉｃｋ",
    "clіck",  # with a Cyrillic letter
    "click＋like",
    "click−like",
    "click×like",
    "click²",
    "click\u200b",
    "click\u00a0+like",
    "٣*click",
    "ﬁ*click",
    "(" * 200 + "click" + ")" * 200,
    "-" * 300 + "click",
    "log(" * 100 + "click" + ")" * 100,
    "click" + "**2" * 150,
    "click" + "+1" * 240,
    "yield click",
    "await click",
    "import os",
    "del click",
    "...",
    "click[0]",
    "click[0:1]",
    "`click`",
    "$click",
    "click!",
    "click?like:dwell",
    "click%n",
    "{{click}}",
    "<click>",
)
_PIECES = (
    *("click", "like", "dwell", "w.like", "w.", "w", "log1p(", "log(", "min(", "clip(", "max("),
    *(
        "(",
        ")",
        "+",
        "-",
        "*",
        "**",
        "/",
        ",",
        " ",
        "\n",
        ".",
        "1",
        "0.5",
        "1e9",
        "9**9**9",
        "1e-300",
    ),
    *("__class__", "__import__", "lambda", "lambda:", "[", "]", "{", "}", ":=", "=", ":", "'", '"'),
    *(
        "for",
        "in",
        "if",
        "else",
        "not",
        "\\",
        "\0",
        "#",
        "é",
        "ｗ",
        "²",
        "@",
        "%",
        "//",
        "0x",
        "j",
        "_",
    ),
)


def mutated(source: random.Random) -> str:
    """A good expression or an attack with pieces put in, cut out, doubled or swapped."""
    text = source.choice((*GOOD, *GOOD, source.choice(ATTACKS)))
    for _ in range(source.choice((0, 1, 1, 1, 2, 3, 8))):
        start = source.randrange(len(text) + 1)
        stop = min(len(text), start + source.randrange(6))
        match source.randrange(4):
            case 0:
                text = text[:start] + source.choice(_PIECES) + text[start:]
            case 1:
                text = text[:start] + text[stop:]
            case 2:
                text = text[:start] + text[start:stop] * 2 + text[stop:]
            case _:
                text = text[:start] + source.choice(_PIECES) + text[stop:]
    return text


def by_python(
    text: str, scores: Mapping[str, npt.NDArray[np.float64]], weights: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """The naive twin: Python's own evaluation, with NumPy's functions and numbers."""

    def number(of: float | str) -> npt.NDArray[np.float64]:
        return np.array([float(of)])  # a NumPy scalar's ** is another, and rounds otherwise

    def pairwise(operation: np.ufunc) -> Any:
        return lambda *values: operation.reduce(np.broadcast_arrays(*values))

    names: dict[str, Any] = {
        **UNARY_FUNCTIONS,
        **scores,
        "N": number,
        "w": SimpleNamespace(**{name: number(weight) for name, weight in weights.items()}),
        "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
        "min": pairwise(np.minimum),
        "max": pairwise(np.maximum),
    }
    floats = re.sub(r"(?<![\w.])(\.?\d[\d.]*([eE][-+]?\d+)?)", r"N('\1')", " ".join(text.split()))
    with np.errstate(all="ignore"):
        found = np.asarray(eval(floats, {"__builtins__": {}}, names))
    values: npt.NDArray[np.float64] = np.clip(found, -LARGEST, LARGEST)
    return np.nan_to_num(values, nan=-LARGEST)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A good expression that reads `click`, within the limits."""
    return f"click * 0 + {draw(_PARTS)}" if draw(st.booleans()) else f"({draw(_PARTS)}) - click"


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    spaces = st.sampled_from(("", " "))
    signs = st.sampled_from(("+", "-", "*", "/", "**"))
    binary = st.builds("{}{}{}{}{}".format, inner, spaces, signs, spaces, inner)
    call = st.builds(
        "{}({})".format, st.sampled_from(("abs", "exp", "log", "log1p", "sqrt")), inner
    )
    several = st.builds("{}({}, {})".format, st.sampled_from(("min", "max")), inner, inner)
    clip = st.builds("clip({}, {}, {})".format, inner, inner, inner)
    sign = st.builds("{}{}".format, st.sampled_from(("-", "+")), inner)
    return binary | binary | sign | call | several | clip | inner.map("({})".format)


_NUMBERS = st.sampled_from(("0.0", "1.0", "0.5", ".25", "2.", "1e3", "1e-9"))
_NAMES = st.sampled_from(("click", "like", "dwell", "w.like", "w.fresh"))
_PARTS = st.recursive(_NUMBERS | _NAMES, _grown, max_leaves=12)

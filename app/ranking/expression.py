"""A safe arithmetic expression over task scores and weights, compiled into NumPy calls.

    click**0.8 * (1 + w.like*like) * log1p(dwell)

A task is written as its name, a weight as `w.name`. A task whose name is not an identifier cannot
be used. The operators are + - * / ** and signs; there are parentheses, numbers, and the functions
abs, clip, exp, expm1, log, log1p, max, min and sqrt. Precedence is Python's:

    sum     := product (("+" | "-") product)*
    product := sign (("*" | "/") sign)*
    sign    := ("+" | "-") sign | power
    power   := atom ("**" sign)?
    atom    := number | task | "w." name | function "(" sum ("," sum)* ")" | "(" sum ")"

The text is never given to Python's own parser. This grammar has no attributes, indexes, strings, or
calls of other functions, so an expression can do arithmetic only. All numbers are floats, so no
power builds a huge integer. Limits on length, nesting and size bound the time.

Evaluation is IEEE float64 and never raises. A candidate whose result is NaN ranks last. An infinity
becomes the largest number of its sign (`LARGEST`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import did_you_mean

Values = npt.NDArray[np.float64]
Evaluate: TypeAlias = Callable[[Mapping[str, Values], Mapping[str, float]], "Values | np.float64"]
"""A compiled node: scores by task and weights by name in, the node's value out."""

MAX_LENGTH = 500  # characters
MAX_DEPTH = 40  # nested parentheses, signs, powers and calls
MAX_NODES = 150

LARGEST = 1e300
"""Bounds results on both sides, so that the difference of two results is finite."""

UNARY_FUNCTIONS: Mapping[str, Callable[..., Values]] = {
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
}
OTHER_FUNCTIONS: Mapping[str, tuple[int, int]] = {"min": (2, 8), "max": (2, 8), "clip": (3, 3)}
"""Functions of several arguments: the smallest and the largest number of arguments."""

_TOKEN = re.compile(
    r"""
      (?P<space>  [ \t\r\n]+ )
    | (?P<number> (?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]) )
    | (?P<weight> w\s*\.\s*[A-Za-z_][A-Za-z0-9_]* )
    | (?P<name>   [A-Za-z_][A-Za-z0-9_]* )
    | (?P<sign>   \*\*|[-+*/(),] )
    """,
    re.VERBOSE | re.ASCII,
)


class ExpressionInvalid(ValueError):
    """An expression breaks a rule; the message says which rule, and where (from column 1)."""

    def __init__(self, rule: str, text: str, position: int) -> None:
        before = text[:position]
        self.line = before.count("\n") + 1
        self.column = position - (before.rfind("\n") + 1) + 1
        where = (
            f"column {self.column}"
            if "\n" not in text
            else f"line {self.line}, column {self.column}"
        )
        super().__init__(f"{rule} (at {where})")


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        text: the source.
        tasks: the tasks that it reads, in order of first use.
        weights: the weights `w.name` that it reads, in order of first use.
    """

    text: str
    tasks: tuple[str, ...]
    weights: tuple[str, ...]
    _evaluate: Evaluate

    def __call__(self, scores: Mapping[str, Values], weights: Mapping[str, float]) -> Values:
        """Return the value for each candidate, `[n]` float64, finite.

        Args:
            scores: `[n]` float64 by task; may hold more tasks than the expression reads.
            weights: by name; may hold more weights than the expression reads.
        """
        with np.errstate(all="ignore"):
            values = np.asarray(self._evaluate(scores, weights), np.float64)
        return np.nan_to_num(np.clip(values, -LARGEST, LARGEST), copy=False, nan=-LARGEST)


def parse(text: str) -> Expression:
    """Compile an expression without evaluating any of it.

    Raises:
        ExpressionInvalid: the text breaks a rule of the grammar or a limit.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionInvalid(f"is longer than {MAX_LENGTH} characters", "", 0)
    parser = _Parser(text)
    evaluate = parser.parse()
    if not parser.tasks:
        raise ExpressionInvalid("reads no task, so all candidates would tie", text, 0)
    return Expression(text, tuple(parser.tasks), tuple(parser.weights), evaluate)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ExpressionInvalid("unexpected character", text, position)
        if match.lastgroup != "space":
            tokens.append(_Token(match.lastgroup, match[0], position))
        position = match.end()
    return [*tokens, _Token("end", "", position)]


class _Parser:
    """Recursive descent: one method for each rule of the grammar, each returning a compiled node.

    Attributes:
        tasks: the tasks read so far, in order of first use (a dict keeps the order).
        weights: the weights read so far, in order of first use.
    """

    def __init__(self, text: str) -> None:
        self.tasks: dict[str, None] = {}
        self.weights: dict[str, None] = {}
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0
        self._nodes = 0

    def parse(self) -> Evaluate:
        """Compile the whole text, and fill `tasks` and `weights`.

        Raises:
            ExpressionInvalid: the text breaks a rule.
        """
        evaluate = self._sum()
        if self._tokens[self._next].kind != "end":
            raise self._error("expected an operator or the end of the expression")
        return evaluate

    def _sum(self) -> Evaluate:
        left = self._product()
        while sign := self._accept("+", "-"):
            left = self._binary(np.add if sign == "+" else np.subtract, left, self._product())
        return left

    def _product(self) -> Evaluate:
        left = self._sign()
        while sign := self._accept("*", "/"):
            left = self._binary(np.multiply if sign == "*" else np.divide, left, self._sign())
        return left

    def _sign(self) -> Evaluate:
        sign = self._accept("+", "-")
        if sign is None:
            return self._power()
        self._enter()
        inner = self._sign()
        self._depth -= 1
        if sign == "+":
            return inner
        return lambda scores, weights: np.negative(inner(scores, weights))

    def _power(self) -> Evaluate:
        base = self._atom()
        if not self._accept("**"):
            return base
        self._enter()
        exponent = self._sign()
        self._depth -= 1
        return self._binary(np.power, base, exponent)

    def _atom(self) -> Evaluate:
        self._count_node()
        token = self._tokens[self._next]
        if token.kind == "end" or (token.kind == "sign" and token.text != "("):
            raise self._error('expected a number, a task, a weight, a function or "("')
        self._next += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "weight":
            weight = token.text.partition(".")[2].strip()
            self.weights[weight] = None
            return lambda _, weights: np.float64(weights[weight])
        if token.kind == "name":
            if self._tokens[self._next].text == "(":
                return self._call(token)
            name = token.text
            self.tasks[name] = None
            return lambda scores, _: scores[name]
        self._enter()
        inner = self._sum()
        self._close()
        return inner

    def _number(self, token: _Token) -> Evaluate:
        number = np.float64(token.text)
        if not np.isfinite(number):
            raise self._error("this number is too large", token)
        return lambda _scores, _weights: number

    def _call(self, name: _Token) -> Evaluate:
        known = sorted([*UNARY_FUNCTIONS, *OTHER_FUNCTIONS])
        if name.text not in known:
            nearest = did_you_mean(name.text, known)
            raise self._error(
                f'unknown function "{name.text}"{nearest} (known: {", ".join(known)})', name
            )
        self._next += 1
        self._enter()
        arguments = [self._sum()]
        while self._accept(","):
            arguments.append(self._sum())
        self._close()
        least, most = OTHER_FUNCTIONS.get(name.text, (1, 1))
        if not least <= len(arguments) <= most:
            takes = str(least) if least == most else f"{least} to {most}"
            plural = "" if most == 1 else "s"
            rule = f"{name.text} takes {takes} argument{plural}, not {len(arguments)}"
            raise self._error(rule, name)
        if name.text in UNARY_FUNCTIONS:
            function, (argument,) = UNARY_FUNCTIONS[name.text], arguments
            return lambda scores, weights: function(argument(scores, weights))
        if name.text == "clip":
            value, low, high = arguments
            return self._binary(np.minimum, self._binary(np.maximum, value, low), high)
        pairwise = np.minimum if name.text == "min" else np.maximum
        left = arguments[0]
        for right in arguments[1:]:
            left = self._binary(pairwise, left, right)
        return left

    def _binary(self, operation: np.ufunc, left: Evaluate, right: Evaluate) -> Evaluate:
        self._count_node()
        return lambda scores, weights: operation(left(scores, weights), right(scores, weights))

    def _accept(self, *signs: str) -> str | None:
        """Consume the next token if it is one of these signs, and return it."""
        token = self._tokens[self._next]
        if token.kind != "sign" or token.text not in signs:
            return None
        self._next += 1
        return token.text

    def _close(self) -> None:
        if not self._accept(")"):
            raise self._error('expected ")"')
        self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"is nested more than {MAX_DEPTH} levels deep")

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(f"has more than {MAX_NODES} operands and operators")

    def _error(self, rule: str, token: _Token | None = None) -> ExpressionInvalid:
        return ExpressionInvalid(rule, self._text, (token or self._tokens[self._next]).position)

"""The grammar of expressions: text to a compiled tree, or an error with its column.

Python's arithmetic with Python's precedence, and nothing else:

    sum     := product (("+" | "-") product)*
    product := sign (("*" | "/") sign)*
    sign    := ("+" | "-") sign | power
    power   := atom ("**" sign)?
    atom    := number | task | "w." name | function "(" sum ("," sum)* ")" | "(" sum ")"

One regular expression makes tokens, and one method a rule makes the tree, whose nodes are closures
over NumPy calls. Which names are tasks of a model is not known here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Evaluate: TypeAlias = Callable[[Mapping[str, Values], Mapping[str, float]], "Values | np.float64"]

LONGEST = 500  # characters
DEEPEST = 40  # brackets, signs, powers and calls within each other
MOST_NODES = 150

ONE: Mapping[str, Callable[..., Values]] = {
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
}
"""Functions of one argument."""
SEVERAL: Mapping[str, tuple[int, int]] = {"min": (2, 8), "max": (2, 8), "clip": (3, 3)}
"""The other functions: how many arguments they take, at least and at most."""

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
    """An expression breaks a rule; the message says which, and `column` where (from 1)."""

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
class _Token:
    kind: str
    text: str
    position: int


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise ExpressionInvalid("this character has no meaning here", text, position)
        if found.lastgroup != "space":
            tokens.append(_Token(found.lastgroup, found[0], position))
        position = found.end()
    return [*tokens, _Token("end", "", position)]


class Parser:
    """Recursive descent: one method a rule of the grammar, each returning a compiled node."""

    def __init__(self, text: str) -> None:
        """Read `text` when `whole` is called."""
        self.tasks: dict[str, None] = {}  # in the order of their first mention
        self.weights: dict[str, None] = {}
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0
        self._nodes = 0

    def whole(self) -> Evaluate:
        """Compile all of the text; afterwards `tasks` and `weights` are what it mentions.

        Raises:
            ExpressionInvalid: it breaks a rule.
        """
        evaluate = self._sum()
        if self._tokens[self._next].kind != "end":
            raise self._wrong("an operator or the end belongs here")
        return evaluate

    def _sum(self) -> Evaluate:
        left = self._product()
        while sign := self._taken("+", "-"):
            left = self._binary(np.add if sign == "+" else np.subtract, left, self._product())
        return left

    def _product(self) -> Evaluate:
        left = self._sign()
        while sign := self._taken("*", "/"):
            left = self._binary(np.multiply if sign == "*" else np.divide, left, self._sign())
        return left

    def _sign(self) -> Evaluate:
        sign = self._taken("+", "-")
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
        if not self._taken("**"):
            return base
        self._enter()
        exponent = self._sign()
        self._depth -= 1
        return self._binary(np.power, base, exponent)

    def _atom(self) -> Evaluate:
        self._count()
        token = self._tokens[self._next]
        if token.kind == "end" or (token.kind == "sign" and token.text != "("):
            raise self._wrong("a number, a task, a weight, a function or a bracket belongs here")
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
            raise self._wrong("this number is too large", token)
        return lambda _scores, _weights: number

    def _call(self, name: _Token) -> Evaluate:
        if name.text not in ONE and name.text not in SEVERAL:
            known = ", ".join(sorted([*ONE, *SEVERAL]))
            raise self._wrong(f"there is no such function; there are {known}", name)
        self._next += 1
        self._enter()
        arguments = [self._sum()]
        while self._taken(","):
            arguments.append(self._sum())
        self._close()
        least, most = SEVERAL.get(name.text, (1, 1))
        if not least <= len(arguments) <= most:
            takes = str(least) if least == most else f"{least} to {most}"
            raise self._wrong(f"takes {takes} arguments, not {len(arguments)}", name)
        if name.text in ONE:
            function, (argument,) = ONE[name.text], arguments
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
        self._count()
        return lambda scores, weights: operation(left(scores, weights), right(scores, weights))

    def _taken(self, *signs: str) -> str | None:
        token = self._tokens[self._next]
        if token.kind != "sign" or token.text not in signs:
            return None
        self._next += 1
        return token.text

    def _close(self) -> None:
        if not self._taken(")"):
            raise self._wrong("a closing bracket belongs here")
        self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"is nested more than {DEEPEST} deep")

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise self._wrong(f"has more than {MOST_NODES} parts")

    def _wrong(self, rule: str, token: _Token | None = None) -> ExpressionInvalid:
        return ExpressionInvalid(rule, self._text, (token or self._tokens[self._next]).position)

"""Fuzz the expression compiler for a given time.

    python -m tests.bench.expression_fuzz --seconds 300

Compiles mutations of good and hostile expressions, and random characters. Each text must be refused
or be arithmetic: its values are finite float64, and equal what Python computes for the same text
where only the names of the grammar exist.
"""

import argparse
import random
import time
from collections import Counter

import numpy as np

from app.ranking.expression import MAX_LENGTH, ExpressionInvalid, parse
from tests.support.expressions import ATTACKS, by_python, mutated

SCORES = {
    "click": np.array([0.0, 0.02, 0.5, 1.0]),
    "like": np.array([1.0, 0.3, 0.1, 0.0]),
    "dwell": np.array([0.0, 12.5, 600.0, 3.25]),
}
WEIGHTS = {"like": 2.0, "fresh": -0.5, "hide": 0.0}
CHARACTERS = "clikew.019()+-*/, \t\n_e[]{}:='\"@\\%<>|&^~!#é²²\0"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=300.0)
    options.add_argument("--seed", type=int, default=0)
    told = options.parse_args()
    source = random.Random(told.seed)
    count: Counter[str] = Counter()
    slowest_s, slowest = 0.0, ""
    end = time.monotonic() + told.seconds
    while time.monotonic() < end:
        for _ in range(1000):
            text = _text(source)
            began = time.perf_counter()
            outcome = _compiled(text)
            took_s = time.perf_counter() - began
            count[outcome] += 1
            if took_s > slowest_s:
                slowest_s, slowest = took_s, text
    print(f"{count.total():,} texts: {dict(count)}; slowest {slowest_s * 1e3:.2f} ms: {slowest!a}")


def _text(source: random.Random) -> str:
    if source.random() < 0.9:
        return mutated(source)
    if source.random() < 0.1:
        return source.choice(ATTACKS)
    length = source.choice((3, 10, 40, MAX_LENGTH + 5))
    return "".join(source.choices(CHARACTERS, k=length))


def _compiled(text: str) -> str:
    try:
        compiled = parse(text)
    except ExpressionInvalid:
        return "refused"
    if not set(compiled.tasks) <= SCORES.keys() or not set(compiled.weights) <= WEIGHTS.keys():
        return "reads what no model has"  # a policy with it is refused
    values = compiled(SCORES, WEIGHTS)
    assert values.dtype == np.float64, text
    assert values.shape == (4,), text
    assert np.isfinite(values).all(), text
    np.testing.assert_array_equal(values, by_python(text, SCORES, WEIGHTS), err_msg=text)
    return "arithmetic"


if __name__ == "__main__":
    main()

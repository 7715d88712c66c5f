"""An answer as a table to read: candidates in their order, with the scores that made it."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table


def answer_table(answer: Mapping[str, Any], keys: Sequence[str | int] | None) -> Table:
    """Tabulate an answer, best candidate first.

    Args:
        answer: the service's answer, parsed.
        keys: the request's candidate keys, or None where it has none.
    """
    policy = answer["policy"]
    weights = ", ".join(f"{task} {weight:g}" for task, weight in policy["weights"].items())
    table = Table(
        title=f"{escape(answer['model'])}/{answer['version']}, {escape(policy['name'])}: "
        f"{policy['formula']} of {escape(weights)}",
        title_justify="left",
    )
    for name in ("rank", "candidate", "rank score", *answer["scores"]):
        table.add_column(escape(name), justify="left" if name == "candidate" else "right")
    for place, position in enumerate(positions(answer, keys), 1):
        key = position if keys is None else keys[position]
        scores = (f"{column[position]:.4g}" for column in answer["scores"].values())
        table.add_row(
            str(place), escape(str(key)), f"{answer['rank_score'][position]:.4g}", *scores
        )
    return table


def positions(answer: Mapping[str, Any], keys: Sequence[str | int] | None) -> list[int]:
    """Return the positions that a ranking's keys stand for, best first.

    Of candidates with equal keys, the one with the higher rank score stands first.
    """
    ranking: list[int] = answer["ranking"]
    if keys is None:
        return ranking
    places: dict[str | int, deque[int]] = defaultdict(deque)
    for position in sorted(range(len(keys)), key=lambda each: -answer["rank_score"][each]):
        places[keys[position]].append(position)
    return [places[key].popleft() for key in ranking]

"""An answer as a table to read: candidates in their order, with the scores that made it."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

Document = Mapping[str, Any]


def answer_table(answer: Document, keys: Sequence[str | int] | None) -> Table:
    """Tabulate an answer, best candidate first, each task's share beside its score if explained.

    Args:
        answer: the service's answer, parsed.
        keys: the request's candidate keys, or None where it has none.
    """
    policy, explanation = answer["policy"], answer.get("explanation")
    weights = ", ".join(f"{task} {weight:g}" for task, weight in policy["weights"].items())
    table = Table(
        title=f"{escape(answer['model'])}/{answer['version']}, {escape(policy['name'])}: "
        f"{policy['formula']} of {escape(weights)}",
        title_justify="left",
        caption=None if explanation is None else _legend(explanation),
        caption_justify="left",
    )
    table.add_column("rank", justify="right")
    table.add_column("candidate")
    for name in ("rank score", *map(escape, answer["scores"])):
        table.add_column(name, justify="right")
    parts = [] if explanation is None else explanation["candidates"]
    for name in _parts(parts[0]) if parts else ():
        table.add_column(escape(name), justify="right")
    for place, position in enumerate(positions(answer, keys)):
        key = position if keys is None else keys[position]
        scores = (f"{column[position]:.4g}" for column in answer["scores"].values())
        shares = _parts(parts[place]).values() if place < len(parts) else ()
        rank_score = f"{answer['rank_score'][position]:.4g}"
        table.add_row(str(place + 1), escape(str(key)), rank_score, *scores, *shares)
    return table


def positions(answer: Document, keys: Sequence[str | int] | None) -> list[int]:
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


def _parts(candidate: Document) -> dict[str, str]:
    """Return what a candidate's merit is made of, by name: each share and, in brackets, its lead.

    A score that was calibrated stands in front.
    """
    told = dict(candidate["tasks"])
    if "multiplier" in candidate:
        told["multiplier"] = candidate["multiplier"]
    parts = {}
    for name, part in told.items():
        raw, calibrated = part["raw"], part["calibrated"]
        became = "" if raw == calibrated else f"{calibrated:.4g}: "
        parts[f"{name} share"] = f"{became}{part['share']:.3g} ({part['lead']:+.3g})"
    if "remainder" in candidate:
        parts["remainder"] = f"{candidate['remainder']:.3g}"
    return parts


def _legend(explanation: Document) -> str:
    return escape(
        f"share: {explanation['share']}. In brackets, lead: {explanation['lead']}. Before a colon: "
        "the calibrated score."
    )

"""What a search found, as tables to read."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from app.ranking.policy import Policy
from app.tuning.bootstrap import Gain


def weight_table(before: Policy, after: Policy) -> Table:
    """Tabulate the weights before and after."""
    table = Table(title=f"{escape(before.name)}: {before.formula}", title_justify="left")
    table.add_column("weight")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name in {**before.weights, **after.weights}:
        old, new = before.weights.get(name, 0.0), after.weights.get(name, 0.0)
        table.add_row(escape(name), f"{old:g}", f"[bold]{new:g}" if new != old else f"{new:g}")
    return table


def gain_table(gains: Mapping[str, Gain], title: str) -> Table:
    """Tabulate before and after, and the interval of the change in per cent of before."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("before", "after", "change", "95 % of bootstraps"):
        table.add_column(name, justify="right")
    for name, gain in gains.items():
        scale = 100 / abs(gain.before) if gain.before else float("nan")
        style = "green" if gain.low > 0 else "red" if gain.high < 0 else None
        table.add_row(
            escape(name),
            f"{gain.before:.4f}",
            f"{gain.after:.4f}",
            f"{gain.change * scale:+.2f} %",
            f"{gain.low * scale:+.2f} to {gain.high * scale:+.2f} %",
            style=style,
        )
    return table

"""The tables of `tests.bench.peers`, from made-up results, and what its peers read."""

import json
import py_compile

import numpy as np
import pytest

from tests.bench.dialects import v2_binary
from tests.bench.peers import tables
from tests.bench.peers.peers import PEERS, SERVERS, _read_v2, settings
from tests.bench.peers.tables import (
    ALONE,
    OURS,
    PLAIN,
    TWO,
    Result,
    between,
    costs,
    goals,
    medians,
    ratios,
    summary,
)


def results() -> list[Result]:
    """Two rounds; mosec has 0.8 of our rate, 1.25 of our CPU time, and the best p99 at 50 rows."""
    made = []
    for number in (1, 2):
        for rows in tables.SIZES:
            made += [
                Result(number, alone, "", rows, 1, 1e4 / rows, rows / 100, 0, 10.0 * rows)
                for alone in (ALONE, PLAIN)
            ]
            for connections in tables.CONNECTIONS:
                for form in ("binary", "json"):
                    rate = 8000 / rows
                    made += [
                        Result(number, OURS, form, rows, connections, rate, 1.0, 2.0, 10.4 * rows),
                        Result(
                            *(number, "mosec", form, rows, connections),
                            *(0.8 * rate, 1.5, 1.0 if rows == 50 else 3.0, 13.0 * rows),
                        ),
                    ]
    return made


def test_cells_are_medians_of_the_rounds():
    made = [Result(n, "x", "json", 1, 1, rate, 1, 2, 3) for n, rate in enumerate((5, 100, 7))]
    (cell,) = medians(made).values()
    assert (cell.rate, cell.rounds) == (7, 3)


def test_ratios_are_to_the_best_peer_of_each_cell():
    lines = list(ratios(medians(results())))[2:]
    assert len(lines) == 2 * 9
    assert lines[0] == "| binary | 1 | 1 | 1.25 | mosec | 0.67 | mosec | 0.80 | mosec |"
    assert "| 2.00 | mosec |" in lines[3]  # p99 at 50 rows


def test_goals_are_met_or_not():
    found = {what: (ratio, most) for what, ratio, most in goals(medians(results()))}
    for what, expected in (
        ("every cell, binary: rate of mosec / ours (the worst cell)", (0.8, 1.0)),
        ("500 rows, binary: CPU / the model alone", (1.04, 1.05)),
        ("50 rows, binary: CPU / mosec", (0.8, 1.0)),
        ("500 rows, JSON: 2 × the rate of the best JSON peer / ours", (1.6, 1.0)),
    ):
        assert found[what] == pytest.approx(expected)
    assert not any("Triton" in goal for goal in found)  # it was not measured
    table = list(tables.goal_table(medians(results())))
    assert sum("| not met |" in line for line in table) == 1
    assert all(line.endswith("| not measured |  |") for line in table[2:])  # of two processes


def test_open_loop_compares_p99():
    opened = [
        Result(1, peer, "binary", 50, 0, 100, 1, p99_ms, 9, offered=100)
        for peer, p99_ms in ((OURS, 3.0), ("mosec", 4.0))
    ]
    found = dict((what, ratio) for what, ratio, _ in goals(medians(opened)))  # noqa: C402
    assert found == {"50 rows, open loop at 70 %: p99 / the best peer": 0.75}


def test_own_artifact_is_compared_with_the_fastest_peer():
    own = Result(1, OURS, "own", 500, 32, 48.0, 1, 1, 1)
    found = {what: (ratio, most) for what, ratio, most in goals(medians([*results(), own]))}
    what = "500 rows: 3 × the rate of the best peer / our own artifact's"
    assert found[what] == pytest.approx((3 * 0.8 * 16 / 48, 1.0))


def test_two_processes_of_ours_are_no_peer():
    two = [
        Result(1, TWO, form, rows, connections, 1e6, 0.1, 0.1, 1)
        for form in ("binary", "json")
        for rows in tables.SIZES
        for connections in (0, *tables.CONNECTIONS)
    ]
    cells = medians([*results(), *two])
    assert list(ratios(cells)) == list(ratios(medians(results())))
    assert list(goals(cells)) == list(goals(medians(results())))
    assert ("50 rows, binary: CPU / mosec", 1 / 650, 1.0) in list(goals(cells, TWO))
    assert [line.split(" | ")[0] for line in summary(cells)][4:7] == [
        f"| **{OURS}, binary**",
        f"| **{TWO}, binary**",
        "| mosec, binary",
    ]


def test_summary_has_a_line_per_server_and_form():
    lines = list(summary(medians(results())))[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [
        *(
            "the file in process",
            "the same, [with oneDNN](#matrix-products-mkl-onednn-and-bf16)",
            f"**{OURS}, binary**",
            "mosec, binary",
        ),
        *(f"**{OURS}, JSON**", "mosec, JSON"),
    ]


def test_costs_are_those_of_full_batches_and_of_a_single_caller():
    lines = list(costs(medians(results())))
    assert f"| **{OURS}, binary** | 10 | 520 | 5,200 | 1.00 | 1.00 | 1.00 |" in lines
    assert "| mosec, JSON | 13 | 650 | 6,500 | 1.50 | 1.50 | 1.50 |" in lines


def test_text_is_put_between_its_markers():
    document = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert between(document, "x", "new") == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="y: begin"):
        between(document, "y", "new")


def test_document_has_every_marker_once():
    document = tables.DOCUMENT.read_text()
    for name in tables.section(results()):
        between(document, name, "")


def test_scripts_of_the_peers_compile():
    scripts = sorted(SERVERS.glob("*.py"))
    assert len(scripts) == 8
    for script in scripts:
        py_compile.compile(str(script), doraise=True)


def test_settings_are_every_combination():
    assert settings(A=(1, 2), B=("x",)) == [{"A": "1", "B": "x"}, {"A": "2", "B": "x"}]
    assert all(len(peer.sweep) >= 1 and peer.forms for peer in PEERS)


def test_v2_response_is_read_in_both_forms():
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    output = {"name": "scores", "shape": [2, 3], "datatype": "FP32"}
    body = json.dumps({"outputs": [output | {"data": scores.ravel().tolist()}]}).encode()
    np.testing.assert_array_equal(_read_v2(body, {}), scores)
    content = scores.tobytes()
    head = json.dumps(
        {"outputs": [output | {"parameters": {"binary_data_size": len(content)}}]}
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    np.testing.assert_array_equal(_read_v2(head + content, headers), scores)
    assert v2_binary(2).headers["inference-header-content-length"]

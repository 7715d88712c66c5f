"""Compare the native JSON API with the Open Inference Protocol in JSON and binary, over HTTP.

    python -m tests.bench.dialects [--connections 8] [--seconds 5] [--rounds 3]

One server answers all formats in alternating rounds, so that other load on the machine affects all
of them alike. Each figure is the median of the rounds. The model and the requests are those of
`tests.bench.http`: 1, 50 or 500 candidates of 100 numbers. Needs `wrk`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import orjson

from app.artifacts.store import Store
from app.benchmarking.requests import Post
from app.engine.hardware import usable_cores
from tests.bench.http import COLUMNS, candidates, native, reference_artifact
from tests.bench.wrk import ClosedLoop, require_wrk, wrk
from tests.support.server import standalone_server

PATH = "/v2/models/reference/infer"


def v2_json(rows: int) -> Post:
    """Return the request in the protocol's JSON form, with flat data as `tritonclient` sends it."""
    x = candidates([rows]).candidate["x"]
    tensor = {"name": "x", "shape": [rows, COLUMNS], "datatype": "FP32", "data": x.ravel()}
    body = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Post(PATH, body, {"content-type": "application/json"})


def v2_binary(rows: int) -> Post:
    """Return the request in binary form, the default of `tritonclient`."""
    content = candidates([rows]).candidate["x"].tobytes()
    tensor = {
        "name": "x",
        "shape": [rows, COLUMNS],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(content)},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return Post(PATH, head + content, headers)


FORMS = {"native JSON": native, "V2 JSON": v2_json, "V2 binary": v2_binary}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--connections", type=int, default=8, help="number of connections (default: 8)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement (s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements per format (default: 3)"
    )
    arguments = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_artifact(Store(folder / "store"))
        print(f"{usable_cores()} cores, {arguments.connections} connections\n")
        print("| rows | form | bytes | req/s | of native | p50 | p99 |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        with standalone_server(folder / "store", folder / "log") as server:
            for rows in (1, 50, 500):
                _measure(server.url, folder, rows, arguments)


def _measure(url: str, folder: Path, rows: int, arguments: argparse.Namespace) -> None:
    found: dict[str, list[ClosedLoop]] = {form: [] for form in FORMS}
    for seconds in (1.0, *[arguments.seconds] * arguments.rounds):
        for form, of in FORMS.items():
            found[form].append(wrk(url, of(rows), arguments.connections, seconds, folder))
    rates = {form: [run.rate for run in runs[1:]] for form, runs in found.items()}
    for form, runs in found.items():
        rate = median(rates[form])
        typical = sorted(runs[1:], key=lambda run: run.rate)[len(runs[1:]) // 2]
        share = rate / median(rates["native JSON"])
        size = len(FORMS[form](rows).body)
        print(
            f"| {rows} | {form} | {size:,} | {rate:,.0f} | {share:.2f} "
            f"| {typical.p50_ms:.2f} ms | {typical.p99_ms:.2f} ms |"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()

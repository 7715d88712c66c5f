"""Test all routes against the OpenAPI document: `python -m tests.support.fuzz_openapi URL [cases]`.

Schemathesis reads the document of a running server and sends valid and invalid requests. It reports
statuses, content types, headers and bodies that are not described, any 5xx status, and invalid
requests that are accepted. GATEHOUSE_KEY is the key for scoring.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests import REPOSITORY

# JSON Schema cannot require columns of equal length, so a valid document may be refused.
EXCLUDED_CHECK = "positive_data_acceptance"


@dataclass(frozen=True, slots=True)
class FuzzReport:
    """The result of a run."""

    operations: int
    cases: int
    accepted: int
    failures: list[str]
    output: str

    def __str__(self) -> str:
        lines = [
            f"{self.operations} operations, {self.cases} cases, {self.accepted} of them accepted, "
            f"{len(self.failures)} kinds of failures",
            *self.failures,
        ]
        return "\n".join(lines)


def fuzz(url: str, *, cases: int, key: str | None = None, seed: int = 1) -> FuzzReport:
    """Run schemathesis against a server, with up to `cases` random cases per operation."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if key is not None:  # a header would also be sent with the requests that test a missing key
            config = f'[auth.openapi.key]\nbearer = "{key}"\n'
            (Path(folder) / "schemathesis.toml").write_text(config)
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--max-examples", str(cases), "--seed", str(seed), "--no-color"),
            *("--exclude-checks", EXCLUDED_CHECK, "--continue-on-failure"),
            *("--report", "json", "--report-json-path", str(report)),
        ]
        environment = {
            "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks",
            "PYTHONPATH": str(REPOSITORY),
        }
        completed = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.is_file():
            raise RuntimeError(completed.stdout + completed.stderr)
        found = json.loads(report.read_text())
    return FuzzReport(
        found["operations"]["tested"],
        found["test_cases"]["generated"],
        sum(
            phase["accepted"]
            for phases in found["valid_rates"].values()
            for phase in phases.values()
        ),
        [f"{failure['title']}: {', '.join(failure['operations'])}" for failure in found["failures"]]
        + [str(error) for error in found["errors"]],
        completed.stdout,
    )


def main(url: str, cases: str = "1000") -> int:
    """Print the failures; return 1 if there are any."""
    report = fuzz(url, cases=int(cases), key=os.environ.get("GATEHOUSE_KEY"))
    print(report.output if report.failures else "", report, sep="")
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

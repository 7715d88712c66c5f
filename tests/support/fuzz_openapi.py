"""Every route against its description: `python -m tests.support.fuzz_openapi URL [cases]`.

Schemathesis reads the OpenAPI document of a running server and sends what it allows and what it
forbids: nothing may be answered with a status, a content type, a header or a document that is not
described, with 5xx at all, or with success where it should be refused. A key to score with comes
from GATEHOUSE_KEY.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests import REPOSITORY

# Equal lengths of columns cannot be described, so what fits the schema may be refused.
LEFT_OUT = "positive_data_acceptance"


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What came of a run."""

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


def fuzz(url: str, *, cases: int, key: str | None = None, seed: int = 1) -> ValidationReport:
    """Run schemathesis against a server, up to so many random cases an operation."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if key is not None:  # as a header, it would go with those requests too that are to lack it
            told = f'[auth.openapi.key]\nbearer = "{key}"\n'
            (Path(folder) / "schemathesis.toml").write_text(told)
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--max-examples", str(cases), "--seed", str(seed), "--no-color"),
            *("--exclude-checks", LEFT_OUT, "--continue-on-failure"),
            *("--report", "json", "--report-json-path", str(report)),
        ]
        environment = {
            "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks",
            "PYTHONPATH": str(REPOSITORY),
        }
        ran = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.is_file():
            raise RuntimeError(ran.stdout + ran.stderr)
        found = json.loads(report.read_text())
    return ValidationReport(
        found["operations"]["tested"],
        found["test_cases"]["generated"],
        sum(
            phase["accepted"]
            for phases in found["valid_rates"].values()
            for phase in phases.values()
        ),
        [f"{each['title']}: {', '.join(each['operations'])}" for each in found["failures"]]
        + [str(each) for each in found["errors"]],
        ran.stdout,
    )


def main(url: str, cases: str = "1000") -> int:
    """Print what was found; 1 if anything was."""
    report = fuzz(url, cases=int(cases), key=os.environ.get("GATEHOUSE_KEY"))
    print(report.output if report.failures else "", report, sep="")
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

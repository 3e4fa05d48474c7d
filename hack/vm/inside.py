"""Run the tests inside the guest and send their reports, one JSON document a line, through the port to the host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

import pytest

RUN = Path("/run.json")
_PORT = Path("/dev/vport0p1")


class Reporter:
    """A pytest plugin that hands every report on as pytest itself serialises it."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._config: pytest.Config

    def _send(self, **document: Any) -> None:
        self._out.write(json.dumps(document) + "\n")
        self._out.flush()

    def pytest_configure(self, config: pytest.Config) -> None:
        """Keep the configuration, whose hooks serialise."""
        self._config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say which test begins: it is the one to blame when nothing more is heard."""
        self._send(start=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a phase of a test."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send(report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Say that a test has ended."""
        self._send(finish=nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Say what could not be collected."""
        if report.failed:
            self._send(broken=str(report.longrepr))


def main() -> int:
    """Run what the host wrote down; the reports are the result."""
    wanted = json.loads(RUN.read_text(encoding="utf-8"))
    with _PORT.open("w", encoding="utf-8") as out:
        arguments = ["-p", "no:cacheprovider", "-q", *wanted["options"], *wanted["tests"]]
        code = pytest.main(arguments, plugins=[Reporter(out)])
        out.write(json.dumps({"end": int(code)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

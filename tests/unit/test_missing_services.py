"""A machine without the programs of a service: its tests are skipped, and one loud line says what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WANTING = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_kafka(kafka_server, n): ...

def test_s3(s3_server): ...

def test_nothing(): ...
"""


def run_without_java(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run tests that want services, with the fixtures of these tests and nothing on the PATH."""
    (tmp_path / "test_wanting.py").write_text(WANTING)
    left_out = re.compile("JAVA_HOME|MDP_.*|PYTEST_.*")
    kept = {name: value for name, value in os.environ.items() if not left_out.fullmatch(name)}
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            REPOSITORY / "pyproject.toml",
            "-p",
            "conftest",
            *arguments,
            "test_wanting.py",
        ],
        env={**kept, "PATH": str(tmp_path), "PYTHONPATH": path, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_they_are_skipped_and_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = run_without_java(tmp_path, "--numprocesses", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SERVICES MISSING")]
    assert "SERVICES MISSING, 4 TESTS SKIPPED: kafka and s3 need Java 17 and Maven" in line
    assert "apt-get install" in line
    assert "1 passed, 4 skipped" in done.stdout


def test_they_fail_where_services_are_required(tmp_path: Path) -> None:
    done = run_without_java(tmp_path, "--numprocesses", "0", MDP_REQUIRE_SERVICES="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("MDP_REQUIRE_SERVICES=1, and kafka and s3 need Java 17 and Maven") >= 4
    assert "1 passed, 4 errors" in done.stdout and "skipped" not in done.stdout

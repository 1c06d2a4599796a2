"""The dependency audit of `make lint`: what it says to findings, and to no network."""

import os
import subprocess
import sys
from typing import Any

import pytest

from scripts.audit import judge, read_ignored
from tests.stack import ROOT

CLEAN = {"name": "flask", "version": "3.1.3", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [
        {
            "id": "PYSEC-2014-8",
            "aliases": ["CVE-2014-0012"],
            "fix_versions": ["2.7.2"],
            "description": "",
        }
    ],
}


def report(*dependencies: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(dependencies), "fixes": []}


def test_a_vulnerability_is_named_with_the_version_that_ends_it() -> None:
    verdict, said = judge(report(CLEAN, BAD), {})
    assert verdict == "found" and said == ["jinja2 2.4.1: PYSEC-2014-8, fixed in 2.7.2"]


@pytest.mark.parametrize("name", ["PYSEC-2014-8", "CVE-2014-0012"])
def test_one_that_is_ignored_with_a_reason_passes(name: str) -> None:
    ignored = read_ignored(f"# list\n{name}  no templates of strangers here\nOLD-1 gone # note\n")
    verdict, said = judge(report(BAD, SKIPPED), ignored)
    assert verdict == "clean"
    assert said[1:] == [
        "not in the advisory database: torch",
        "OLD-1 is no longer needed in audit-ignore.txt",
    ]
    with pytest.raises(ValueError, match=f"{name} is ignored without a reason"):
        read_ignored(name)


def test_knowing_nothing_is_not_taken_for_good_news() -> None:
    verdict, said = judge(report(SKIPPED), {})
    assert verdict == "unknown" and "nothing was audited" in said[0]


def test_without_a_network_it_says_so_and_does_not_fail() -> None:
    environ = os.environ | dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:1")
    command = [sys.executable, "scripts/audit.py"]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "cannot be reached; nothing was audited" in ended.stdout

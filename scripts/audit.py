"""Asks whether a known vulnerability is in what is installed: ``python scripts/audit.py``.

pip-audit does the asking. A finding fails, unless ``audit-ignore.txt`` beside this file names it
with a reason. Where the advisory database cannot be reached nothing is known, which is said and is
no failure: developing must work without a network. With ``--daily`` an answer serves for a day.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IGNORED = Path(__file__).with_name("audit-ignore.txt")
STAMP = Path(sys.prefix) / ".audited"
# How long an answer serves, by what it was.
GOOD_FOR_S = {"clean": 86_400, "unknown": 3600}
LIMIT_S = 300


def read_ignored(text: str) -> dict[str, str]:
    """Advisories by id with the reason why they do not matter here.

    Raises:
        ValueError: one has no reason.
    """
    ignored = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        name, _, reason = line.partition(" ")
        if not reason.strip():
            raise ValueError(f"{name} is ignored without a reason")
        ignored[name] = reason.strip()
    return ignored


def judge(report: dict[str, Any], ignored: dict[str, str]) -> tuple[str, list[str]]:
    """What a pip-audit report means: ``found``, ``unknown`` or ``clean``, and what to say."""
    asked = [entry for entry in report["dependencies"] if "skip_reason" not in entry]
    skipped = sorted(e["name"] for e in report["dependencies"] if "skip_reason" in e)
    skipped = [name for name in skipped if name != "supertonic-server"]
    found, used = [], set()
    for entry in asked:
        for advisory in entry["vulns"]:
            names = {advisory["id"], *advisory["aliases"]}
            if known := names & ignored.keys():
                used |= known
                continue
            fixed = ", ".join(advisory["fix_versions"]) or "none yet"
            found.append(f"{entry['name']} {entry['version']}: {advisory['id']}, fixed in {fixed}")
    if found:
        return "found", found
    if not asked:
        return "unknown", ["the advisory database does not know any package; nothing was audited"]
    said = [f"{len(asked)} packages have no known vulnerability"]
    if skipped:
        said.append(f"not in the advisory database: {', '.join(skipped)}")
    said += [f"{name} is no longer needed in {IGNORED.name}" for name in ignored.keys() - used]
    return "clean", said


def ask() -> dict[str, Any] | None:
    """pip-audit's report on this environment, None where it could not make one."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json"]
    try:
        ended = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=LIMIT_S
        )
        report: dict[str, Any] = json.loads(ended.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report


def is_fresh() -> bool:
    if not STAMP.exists():
        return False
    asked_at = STAMP.stat().st_mtime
    changed_at = max(path.stat().st_mtime for path in (ROOT / "pyproject.toml", IGNORED))
    good_for_s = GOOD_FOR_S.get(STAMP.read_text(), 0)
    return changed_at < asked_at and time.time() - asked_at < good_for_s


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for known vulnerabilities.")
    parser.add_argument("--daily", action="store_true", help="do not ask again on the same day")
    if parser.parse_args().daily and is_fresh():
        return 0
    ignored = read_ignored(IGNORED.read_text())
    report = ask()
    if report is None:
        verdict, said = "unknown", ["the advisory database cannot be reached; nothing was audited"]
    else:
        verdict, said = judge(report, ignored)
    for line in said:
        print(f"audit: {line}")
    if verdict == "found":
        print(f"audit: update them, or name them in scripts/{IGNORED.name} with a reason")
        return 1
    STAMP.write_text(verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())

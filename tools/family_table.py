"""The README's table of families, from a run of their tests.

    python tools/family_table.py

prints it: for each family the largest difference of a logit to transformers', relative to the
largest logit or 1, and how many tokens of the greedy continuations are the same.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

from grpojax.families import FAMILIES

ROOT = Path(__file__).parent.parent


def run_tests() -> list[dict[str, str]]:
    """What each test of tests/test_families.py recorded; raises CalledProcessError if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        command += ["tests/test_families.py", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        cases = xml.etree.ElementTree.parse(report).iter("properties")
        return [{p.get("name"): p.get("value") for p in case} for case in cases]


def main() -> None:
    recorded = run_tests()
    print("| family | architecture | largest difference of a logit | greedy tokens the same |")
    print("|---|---|---|---|")
    for name, family in FAMILIES.items():
        mine = [case for case in recorded if case.get("family") == name]
        error = max(float(case["error"]) for case in mine if "error" in case)
        (greedy,) = (case["greedy"] for case in mine if "greedy" in case)
        print(f"| `{name}` | {family.ARCHITECTURE} | {error:.1e} | {greedy} |")


if __name__ == "__main__":
    main()

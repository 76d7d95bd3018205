"""The command `penstock` where only the SDK is installed."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from penstock._script import main
sys.argv = ["penstock", "--version"]
main()
"""


def run_without(*missing: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a Python that cannot import these modules."""
    code = WITHOUT.format(missing=missing)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_with_everything_there_the_command_line_runs() -> None:
    done = run_without()
    assert (done.returncode, done.stderr) == (0, "")
    assert "penstock" in done.stdout


def test_without_the_brokers_dependencies_it_says_what_to_install() -> None:
    for missing in ("click", "trio", "sqlalchemy"):
        done = run_without(missing)
        assert done.returncode == 2
        assert done.stderr.startswith("the command line needs: pip install 'penstock[broker]'")
        assert missing in done.stderr


def test_a_missing_part_of_our_own_is_no_matter_of_extras() -> None:
    done = run_without("penstock_storage.interface")
    assert done.returncode == 1
    assert "penstock_storage.interface" in done.stderr

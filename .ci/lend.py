"""Lends what a package says it needs, and nothing else, to another environment.

A second installation of torch would take minutes. Instead the packages that SITE holds already are
linked into the environment that runs this: those that the installed NAME requires, and what they
require in turn.

Usage: python lend.py NAME SITE
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def spelt(name: str) -> str:
    """A name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(of: Distribution) -> set[str]:
    """What a distribution names without an extra, also for other machines."""
    lines = [line for line in of.requires or [] if "extra ==" not in line]
    return {spelt(match[0]) for line in lines if (match := REQUIREMENT.match(line))}


def main(name: str, site: str) -> None:
    """Links all that a distribution requires; asks pip whether that is what it requires."""
    held = {spelt(one.metadata["Name"]): one for one in distributions(path=[site])}
    wanted, seen = required(distribution(name)), set()
    while wanted:
        seen |= wanted
        wanted = {other for one in wanted & held.keys() for other in required(held[one])} - seen
    own = Path(sysconfig.get_path("purelib"))
    kept = {spelt(one.metadata["Name"]) for one in distributions(path=[str(own)])}
    for one in sorted(seen & held.keys() - kept):
        for top in {file.parts[0] for file in held[one].files or []} - {"..", "__pycache__"}:
            if not (own / top).exists():
                (own / top).symlink_to(Path(site) / top)
    # What is not there, or of a version that does not do, is said by pip.
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Whether the book can be published: `python -m tools.release` names all that is missing, and fails.

python -m tools.release --version    print the version
"""

import argparse
import re
import subprocess
import sys
import tomllib

from tools.chapters import ROOT

PLACEHOLDER = "set_your_account"


def version() -> str:
    """The version of pyproject.toml."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    return found


def missing() -> list[str]:
    """What stands in the way of a release, a sentence each."""
    faults = []
    with_placeholder = [
        path
        for path in git("grep", "-l", PLACEHOLDER).split()
        if not path.startswith(("tools/", "tests/"))
    ]
    if with_placeholder:
        faults.append(
            f"{PLACEHOLDER} stands in {len(with_placeholder)} files: set the account in _config.yml, then `make stamp`"
        )
    number = version()
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    if cited is None or cited[1] != number:
        faults.append(f"CITATION.cff has another version than pyproject.toml, {number}")
    if f"## {number}" not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        faults.append(f"CHANGELOG.md has no section {number}")
    if f"v{number}" in git("tag").split():
        faults.append(f"v{number} has been tagged: raise the version in pyproject.toml")
    if git("status", "--porcelain"):
        faults.append("there are changes that are not committed")
    return faults


def git(*arguments: str) -> str:
    """What git says; nothing if it finds nothing."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


def main() -> int:
    """Print what is missing; 1 if something is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="store_true")
    if parser.parse_args().version:
        print(version())
        return 0
    faults = missing()
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

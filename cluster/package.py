"""The code a job brings along: what git knows of this checkout, without tests and data, as one zip file."""

import subprocess
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
EXCLUDED = ("tests", "data", "runs", ".ci")
"""Folders at the top that no job needs. What git ignores (``.venv``, ``runs``) is left out in any case."""
MAX_BYTES = 100 << 20
"""What Ray's job server accepts; more ends there as a bare "413"."""
NUM_NAMED = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)


def commit_of(root: Path, allow_dirty: bool) -> str:
    """Name the commit of a checkout, with ``-dirty`` behind it if files differ from it and that is allowed.

    Raises:
        ValueError: they differ and it is not, or there is no commit.
    """
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        raise ValueError(
            f"{root} is no git repository with a commit; submit from a clone: runs are named by its commits"
        )
    changed = [line[3:] for line in (_git(root, "status", "--porcelain", "--untracked-files=all") or "").splitlines()]
    if not changed:
        return head.strip()
    if not allow_dirty:
        more = f" and {len(changed) - NUM_NAMED} more" if len(changed) > NUM_NAMED else ""
        raise ValueError(
            f"{', '.join(changed[:NUM_NAMED])}{more} differ from the last commit, which the job's runs would name; "
            f"commit them, or submit with --dirty"
        )
    return f"{head.strip()}-dirty"


def shipped_files(root: Path) -> list[Path]:
    """List the files that go along, relative to ``root``: those git tracks and those it would."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    paths = (Path(name) for name in sorted(set(listed.split("\0"))) if name)
    return [path for path in paths if path.parts[0] not in EXCLUDED and (root / path).is_file()]


def pack(root: Path, target: Path, max_bytes: int = MAX_BYTES) -> int:
    """Write the package of a checkout, the same bytes for the same files, and give its size.

    Raises:
        ValueError: it is larger than ``max_bytes``; the largest folders are named.
    """
    files = shipped_files(root)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for file in files:
            entry = zipfile.ZipInfo(file.as_posix(), _EPOCH)
            entry.external_attr = ((root / file).stat().st_mode & 0o777) << 16
            package.writestr(entry, (root / file).read_bytes(), zipfile.ZIP_DEFLATED)
            if target.stat().st_size > max_bytes:
                break  # whatever comes now, it is too much
    if (size := target.stat().st_size) > max_bytes:
        raise ValueError(
            f"the code makes a package of more than the {max_bytes / (1 << 20):.0f} MiB that the job server accepts; "
            f"largest folders: {_largest(root, files)}; move data out of the checkout (jobs read them from storage), "
            f"or have git ignore them"
        )
    return size


def _largest(root: Path, files: list[Path]) -> str:
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.parent.as_posix()] += (root / file).stat().st_size
    return ", ".join(f"{folder} ({size / (1 << 20):.1f} MiB)" for folder, size in sizes.most_common(NUM_NAMED))


def _git(root: Path, *command: str) -> str | None:
    found = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    return found.stdout if found.returncode == 0 else None

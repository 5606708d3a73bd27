"""What a submitted job brings along, without a cluster."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.package import ROOT, commit_of, pack, shipped_files


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *command], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name in ("jobs/run.py", "tests/test_run.py", "data/x.bin", "pipeline/a.py", ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("/ignored/\n" if name == ".gitignore" else name, encoding="utf-8")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert commit_of(checkout, allow_dirty=False) == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["jobs/run.py", "jobs/new.py"])
def test_a_changed_or_a_new_file_is_refused_by_name_unless_allowed(checkout: Path, name: str) -> None:
    (checkout / name).write_text("changed", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{name} differ.* --dirty$"):
        commit_of(checkout, allow_dirty=False)
    assert commit_of(checkout, allow_dirty=True) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_code_outside_of_a_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no git repository"):
        commit_of(tmp_path, allow_dirty=True)


def test_the_package_holds_the_code_without_tests_data_git_and_what_git_ignores(checkout: Path, tmp_path: Path) -> None:
    (checkout / "ignored").mkdir()
    (checkout / "ignored" / "weights.bin").write_bytes(b"w")
    (checkout / "jobs" / "new.py").write_text("new", encoding="utf-8")
    (checkout / "pipeline" / "a.py").unlink()
    size = pack(checkout, tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as package:
        assert sorted(package.namelist()) == [".gitignore", "jobs/new.py", "jobs/run.py"]
        assert package.read("jobs/new.py") == b"new"
    assert size == (tmp_path / "code.zip").stat().st_size


def test_the_same_code_makes_the_same_package_so_that_it_is_uploaded_once(checkout: Path, tmp_path: Path) -> None:
    pack(checkout, tmp_path / "a.zip")
    (checkout / "jobs" / "run.py").touch()
    pack(checkout, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_package_that_is_too_large_is_refused_with_its_largest_folders(checkout: Path, tmp_path: Path) -> None:
    weights = checkout / "pipeline" / "weights"
    weights.mkdir()
    (weights / "big.bin").write_bytes(bytes(range(256)) * 8000)
    with pytest.raises(ValueError, match=r"more than the 0 MiB .* largest folders: pipeline/weights \(2\.0 MiB\)"):
        pack(checkout, tmp_path / "code.zip", max_bytes=4000)


def test_this_checkout_ships_the_packages_and_what_they_read() -> None:
    files = {path.as_posix() for path in shipped_files(ROOT)}
    assert {"jobs/pseudo_label.py", "pipeline/protocols/odinw13.yaml", "pyproject.toml"} <= files
    assert not {path for path in files if path.startswith(("tests/", ".venv/", "runs/", ".git/"))}

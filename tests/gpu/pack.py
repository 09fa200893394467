"""Pack the project and its packages into one file, for the checks on a machine with a GPU and without a network.

README.md beside this file says how both are used; bundle.yaml says what goes in.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergetime.core.errors import UserError, main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCK = ROOT / "envs/requirements.lock"
LIMIT_MIB = 60
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 36)]
PLATFORMS += [f"manylinux{year}_x86_64" for year in ("1", "2010", "2014")]
"""pip matches each by its name alone: a wheel for glibc 2.17 is none for 2.28 to it."""


def requirements(lock: str, left_out: Iterable[str]) -> str:
    """The lock, hashes included, without the packages that are left out.

    Raises:
        UserError: for one that the lock does not have.
    """
    entries = {re.split("==", entry)[0]: entry for entry in re.findall(r"^\S+==(?:.*\\\n)*.*\n", lock, re.MULTILINE)}
    out = set(left_out)
    if unknown := sorted(out - set(entries)):
        raise UserError(f"bundle.yaml: left_out: {unknown[0]} is not in {LOCK.name}; remove it from the list")
    return "".join(entry for name, entry in entries.items() if name not in out)


def install(arguments: Sequence[str], folder: Path, python: str) -> None:
    """Install packages for another Python on Linux (x86-64) into a folder, exactly those that are named."""
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--root-user-action", "ignore", "--implementation", "cp", "--python-version", python]
    subprocess.run([*command, *platforms, "--target", str(folder), *arguments], check=True)


def trim(folder: Path, remove: Iterable[str], keep: Iterable[str]) -> None:
    """Delete what matches a pattern of ``remove`` and none of ``keep``."""
    kept = {path for pattern in keep for found in folder.glob(pattern) for path in (found, *found.rglob("*"))}
    for pattern in remove:
        for path in sorted(folder.glob(pattern)):
            _delete(path, kept)


def _delete(path: Path, kept: set[Path]) -> None:
    """Delete a file or a folder, but for what is kept in it."""
    if path in kept or not path.exists():
        return
    if not path.is_dir():
        path.unlink()
    elif any(path in inside.parents for inside in kept):
        for inside in list(path.iterdir()):
            _delete(inside, kept)
    else:
        shutil.rmtree(path)


def strip(folder: Path, patterns: Iterable[str]) -> None:
    """Remove from shared libraries what only a debugger reads."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        subprocess.run(["strip", "--strip-unneeded", path], check=True)


def export(folder: Path) -> None:
    """Write the project as it is committed; what is not does not travel."""
    if changed := subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT, text=True).splitlines():
        print(f"note: {len(changed)} files with changes that are not committed stay behind", file=sys.stderr)
    folder.mkdir(parents=True)
    archive = subprocess.check_output(["git", "archive", "HEAD"], cwd=ROOT)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each entry of a folder, the largest first."""
    bytes_of = {
        entry.name: sum(file.stat().st_size for file in (entry, *entry.rglob("*")) if file.is_file())
        for entry in folder.iterdir()
    }
    return dict(sorted(bytes_of.items(), key=lambda item: item[1], reverse=True))


def compress(folder: Path, file: Path) -> None:
    """Write a folder's content to a tar, like files beside one another, with nothing of this machine in it."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    paths = sorted((path for path in folder.rglob("*") if not path.is_dir()), key=lambda path: (path.suffix, path))
    with tarfile.open(file, "w:xz", preset=6) as tar:
        for path in paths:
            tar.add(path, path.relative_to(folder), filter=plain)


def make(content: Mapping[str, Any], work: Path, file: Path, python: str, *, project: bool) -> None:
    """One file of packages, and of the project where it is asked for.

    Raises:
        UserError: where it is larger than :data:`LIMIT_MIB`, naming what it is large of.
    """
    packages = work / content["folder"]
    if project:
        export(work / "mergetime")
        chosen = work.with_suffix(".txt")
        left_out = (name for names in content["left_out"] for name in names)
        chosen.write_text(requirements(LOCK.read_text(), left_out))
        install(["--require-hashes", "--requirement", str(chosen)], packages, python)
    install(content["packages"], packages, python)
    trim(packages, content["remove"], content["keep"])
    strip(packages, content["strip"])
    compress(work, file)
    mib, largest = file.stat().st_size / 2**20, list(sizes(packages).items())[:5]
    print(f"{file}: {mib:.1f} MiB")
    if mib > LIMIT_MIB:
        names = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for name, size in largest)
        raise UserError(f"{file} is larger than {LIMIT_MIB} MiB; remove more in bundle.yaml of {names}")


def run() -> None:
    content = yaml.safe_load((HERE / "bundle.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    parser.add_argument("--python-version", default="3.12", help="of that machine; default 3.12")
    parser.add_argument(
        "--with", dest="apart", choices=sorted(content["apart"]), help="this file alone, which goes beside the other"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        work = Path(folder) / "bundle"
        if given.apart:
            part = content["apart"][given.apart] | {"folder": f"packages-{given.apart}"}
            make(part, work, given.out / f"mergetime-{given.apart}.tar.xz", given.python_version, project=False)
        else:
            whole = content | {"folder": "packages", "packages": content["also"]}
            make(whole, work, given.out / "mergetime-gpu.tar.xz", given.python_version, project=True)


if __name__ == "__main__":
    main(run)

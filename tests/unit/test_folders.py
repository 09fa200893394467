"""What lies in a folder that a stage fills: its own files, and anything else, which stays and is named."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mergetime.core.errors import UserError
from mergetime.core.folders import files_called, refuse_foreign

EXPECTED = files_called(["a.json", "below/b.json"])


def planted_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(str(path))


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "c.json": (Path.touch, "a file"),
    ".c.json.partial": (Path.touch, "a file"),
    ".a.json.old": (Path.touch, "a file"),
    "b.json": (Path.touch, "a file"),
    "below/a.json": (Path.touch, "a file"),
    "a.json": (lambda path: path.symlink_to("/etc/hostname"), "a link"),
    "link": (lambda path: path.symlink_to("nowhere"), "a link"),
    "below/b.json": (os.mkfifo, "no regular file"),
    ".a.json.partial": (os.mkfifo, "no regular file"),
    "s": (planted_socket, "no regular file"),
    "below/empty": (Path.mkdir, "an empty folder"),
    "empty": (Path.mkdir, "an empty folder"),
    ".a.json.9": (Path.mkdir, "an empty folder"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_not_the_stages_is_named_and_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    plant, words = PLANTED[name]
    folder = Path("out")
    (folder / "below").mkdir(parents=True)
    plant(folder / name)
    if not any((folder / "below").iterdir()):
        (folder / "below").rmdir()
    with pytest.raises(UserError) as refused:
        refuse_foreign(folder, EXPECTED, "X")
    assert (
        str(refused.value) == f"out/{name}: is {words}, and none of the files of X; move it elsewhere, then run again"
    )
    assert os.path.lexists(folder / name)


def test_a_stages_own_files_are_none_of_that(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "none", EXPECTED, "X")
    refuse_foreign(tmp_path, EXPECTED, "X")
    (tmp_path / "below").mkdir()
    refuse_foreign(tmp_path, EXPECTED, "X")
    for name in ("a.json", ".a.json.partial", ".a.json.4711", "below/b.json", "below/.b.json.1"):
        (tmp_path / name).touch()
    refuse_foreign(tmp_path, EXPECTED, "X")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link: is a link"):
        refuse_foreign(tmp_path / "link", EXPECTED, "X")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is no folder; move it elsewhere"):
        refuse_foreign(tmp_path / "file", EXPECTED, "X")
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(UserError, match="lost: is no folder; move it elsewhere"):
        refuse_foreign(tmp_path / "lost", EXPECTED, "X")

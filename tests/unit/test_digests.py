"""What a digest of code covers, on a package of a few modules; what real stages cover is in reruns.md."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mergetime.core import digests, registries
from mergetime.core.registries import Registry

METHODS = Registry("mergetime.methods", "merge method")
FILES = {
    "stage": "import other\nfrom mergetime.used import something\nfrom mergetime.config.section import Section\n",
    "other": "",
    "mergetime/__init__": "",
    "mergetime/used": "def f():\n    from mergetime.parts.inside import x\n    from mergetime import whole\n",
    "mergetime/config/__init__": "",
    "mergetime/config/section": "import mergetime.unused\n",
    "mergetime/parts/__init__": "",
    "mergetime/parts/inside": "",
    "mergetime/parts/beside": "",
    "mergetime/whole/__init__": "",
    "mergetime/whole/member": "",
    "mergetime/types": "",
    "mergetime/unused": "",
    "mergetime/methods/__init__": "",
    "mergetime/methods/ties": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mergetime.types import T\n",
    "mergetime/methods/dare_ties": "import mergetime.methods.ties\n",
    "mergetime/methods/average": "",
}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(digests, "SCRIPTS", tmp_path)
    monkeypatch.setattr(registries, "SCRIPTS", tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for cached in (digests.code_digest, digests.imports, digests._files, digests._sha256):
        cached.cache_clear()


def digest(*members: str) -> str:
    forget()
    return digests.code_digest("stage", members=tuple(METHODS.file(name) for name in members))


def changes(scripts: Path, name: str, made: Callable[[], str]) -> bool:
    """Whether a change of a file changes a digest; undoing the change must give the digest of before."""
    before, file = made(), scripts / f"{name}.py"
    file.write_text(FILES[name] + "# changed\n")
    after = made()
    file.write_text(FILES[name])
    assert made() == before
    return after != before


def test_it_covers_what_is_imported_and_no_more(scripts: Path) -> None:
    covered = {name for name in FILES if changes(scripts, name, digest)}
    packages = {f"mergetime/{name}__init__" for name in ("", "parts/", "whole/")}
    assert (
        covered == {"stage", "other", "mergetime/used", "mergetime/parts/inside", "mergetime/whole/member"} | packages
    )


@pytest.mark.parametrize(
    ("member", "covers"),
    [("ties", {"ties"}), ("dare_ties", {"ties", "dare_ties"}), ("average", {"average"})],
)
def test_it_covers_the_members_that_are_named_with_what_they_import(
    scripts: Path, member: str, covers: set[str]
) -> None:
    names = [Path(name).stem for name in FILES if name.startswith("mergetime/methods/") and "__" not in name]
    changed = {name for name in names if changes(scripts, f"mergetime/methods/{name}", lambda: digest(member))}
    assert changed == covers


def test_types_change_no_result(scripts: Path) -> None:
    assert not changes(scripts, "mergetime/types", lambda: digest("ties"))


def test_a_new_member_changes_no_digest(scripts: Path) -> None:
    before = digest(), digest("ties")
    (scripts / "mergetime/methods/new.py").write_text("")
    assert METHODS.names() == ("average", "dare_ties", "new", "ties")
    assert (digest(), digest("ties")) == before
    assert digest("new") not in before


def test_a_relative_import_is_refused(scripts: Path) -> None:
    (scripts / "mergetime/used.py").write_text("from . import unused\n")
    with pytest.raises(ValueError, match=r"used\.py, line 1: import by the whole name"):
        digest()


def test_an_unknown_member_is_refused_with_the_nearest_name(scripts: Path) -> None:
    with pytest.raises(ValueError, match=r"^unknown merge method 'tie'; did you mean 'ties'\?$"):
        METHODS.file("tie")

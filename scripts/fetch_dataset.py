"""Fetch a data set from the hub, at one commit, into a Parquet file per split with the data set's own columns."""

import argparse
import glob
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.core import provenance
from mergetime.core.atomic import completed
from mergetime.core.errors import UserError, main
from mergetime.core.folders import files_called, refuse_foreign
from mergetime.hub import fetching, snapshots
from mergetime.hub.client import Patience

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_RECORD = "fetched.json"
_DESCRIBING = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What the library reads of a data set to learn which files are which split of which configuration."""


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="hub id")
    parser.add_argument("--config", required=True, help="configuration of the data set; None where it has one alone")
    parser.add_argument("--split", action="append", default=[], help="a split that must be there; repeat")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the download cache")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; fetched.json is written last")
    fetching.add_options(parser)
    options = parser.parse_args()
    started = time.time()

    fetching.check_revision("dataset", options.dataset, options.revision)
    if Path(options.dataset).exists():
        # The library prefers a folder of this name to the hub.
        raise UserError(
            f"{Path(options.dataset).absolute()}: would be read instead of the hub's data set of this name; "
            "move it elsewhere, or run again in another folder"
        )
    # Where the library cannot reach the hub it takes what tables it has of a data set, of whatever commit: it has none.
    tables = options.out.with_name(f".{options.out.name}.tables")
    if tables.is_symlink():
        raise UserError(f"{tables}: is a link; move it elsewhere, then run again")
    shutil.rmtree(tables, ignore_errors=True)
    os.environ.setdefault("HF_HUB_CACHE", str(options.cache.resolve() / "hub"))
    try:
        _fetch(options, tables, started)
    finally:
        shutil.rmtree(tables, ignore_errors=True)


def _fetch(options: argparse.Namespace, tables: Path, started: float) -> None:
    with fetching.connected(options) as patience:
        try:
            splits = _load(options, tables, patience)
        except UserError:
            raise
        except Exception as error:
            raise fetching.explain(error, "dataset", options.dataset, options.revision) from error
    _check(options, {name: len(rows) for name, rows in splits.items()})
    files = {name: options.out / f"{name}.parquet" for name in splits}
    refuse_foreign(options.out, files_called([*(file.name for file in files.values()), _RECORD]), _owner(options))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with completed(files[name]) as (beside,):
            rows.to_parquet(str(beside))
    provenance.record(
        options.out / _RECORD,
        stage="fetch_dataset",
        inputs={},
        config={"dataset": options.dataset, "revision": options.revision, "config": options.config},
        facts={"rows": {name: len(rows) for name, rows in splits.items()}},
        started=started,
        outputs=files.values(),
    )


def _load(options: argparse.Namespace, tables: Path, patience: Patience) -> dict[str, Any]:
    """The data set's splits, made of files that were compared with the hub's listing."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    listed = snapshots.listing(options.dataset, "dataset", options.revision)
    patience.longest = max((file.size for file in listed.values()), default=0)
    at = {"repo_id": options.dataset, "revision": options.revision, "repo_type": "dataset"}
    for name in _DESCRIBING:
        if name in listed:
            # The library asks for it too, but hides what the hub said when it refuses.
            file = hf_hub_download(filename=name, **at)
            _refuse_damaged(options, Path(file).parent, {name: listed[name]})
        elif isinstance(cached := try_to_load_from_cache(filename=name, **at), str):
            raise UserError(f"{cached}: is none of the files of {_owner(options)}; move it elsewhere, then run again")
    from datasets.packaged_modules.csv.csv import CsvConfig

    builder = _builder(options, tables)
    if isinstance(builder.config, CsvConfig):
        # Cells as they stand: an empty answer is an empty string, and the word NA is no missing value.
        builder = _builder(options, tables, keep_default_na=False)
    _fetch_files(options, builder, listed)
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def _builder(options: argparse.Namespace, tables: Path, **reading: Any) -> "DatasetBuilder":
    from datasets import get_dataset_config_names, load_dataset_builder

    config = None if options.config == "None" else options.config
    try:
        return load_dataset_builder(
            options.dataset, config, revision=options.revision, cache_dir=str(tables), **reading
        )
    except ValueError as error:
        names = get_dataset_config_names(options.dataset, revision=options.revision)
        if config in names or (config is None and len(names) == 1):
            raise
        wrong = f"has no configuration '{config}'" if config else "has several configurations"
        raise UserError(f"{_owner(options)} {wrong}; choose config: {', '.join(sorted(names))}") from error


def _fetch_files(options: argparse.Namespace, builder: "DatasetBuilder", listed: dict[str, snapshots.Listed]) -> None:
    """Fetch the files of a configuration into the cache, where the library finds them, and compare them.

    Raises:
        UserError: where the library would read a file that is none of the data set.
    """
    from huggingface_hub import snapshot_download

    home = f"hf://datasets/{options.dataset}@{options.revision}/"
    files = {}
    for url in (str(url) for of_split in (builder.config.data_files or {}).values() for url in of_split):
        # What is in an archive stands before the archive.
        archive = url.rpartition("::")[2]
        path = archive.removeprefix(home)
        if not archive.startswith(home) or path not in listed:
            raise UserError(
                f"{_owner(options)}: its description names {url}, which is none of its files; choose another revision"
            )
        files[path] = listed[path]
    if not files:
        return
    patterns = [glob.escape(path) for path in sorted(files)]
    folder = snapshot_download(options.dataset, repo_type="dataset", revision=options.revision, allow_patterns=patterns)
    _refuse_damaged(options, Path(folder), files)


def _refuse_damaged(options: argparse.Namespace, snapshot: Path, files: dict[str, snapshots.Listed]) -> None:
    # The snapshot holds links to blobs beside it, in the cache's folder of the repository.
    home = snapshot.parents[1]
    fetching.refuse_damaged(snapshot, files, "dataset", options.dataset, options.revision, home=home)


def _owner(options: argparse.Namespace) -> str:
    return f"data set {options.dataset} at {options.revision}"


def _check(options: argparse.Namespace, rows: dict[str, int]) -> None:
    """Refuse what a later stage could not use."""
    owner = _owner(options)
    empty = [name for name, count in rows.items() if count == 0]
    if empty:
        raise UserError(f"{owner}: split {', '.join(empty)} is empty")
    missing = [name for name in options.split if name not in rows]
    if missing:
        raise UserError(f"{owner}: it has no split '{missing[0]}'; it has: {', '.join(sorted(rows))}")


if __name__ == "__main__":
    main(run)

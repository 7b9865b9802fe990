"""From what was given on the command line to files: files, directories and globs, in sorted order.

A link is followed only within the directory that was given (for a file: the directory it stands in), so that
an inbox cannot be made to read what is not in it. Hidden files are not looked at, nor is the raw zone itself.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """A file to load. `path` is free of links; `problem` says why it may not be opened, and `by_search` that a
    directory or a glob led to it, and nobody named it."""

    given: str
    path: Path
    name: str
    problem: str | None = None
    by_search: bool = False


def expand(paths: Iterable[str | Path], avoid: str) -> Iterator[Found]:
    """Yield the files that paths, directories and globs name; those that may not be read with a problem.

    `avoid` is a directory (the raw zone) that is left out wherever it is met.
    """
    for given in map(str, paths):
        if "\0" in given:
            yield Found(given, Path(), given, "has a name with a NUL byte")
        elif os.path.lexists(given):
            yield from _walk(given, _root_of(Path(given)), avoid)
        elif glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (hidden files stay out of this one)
            root = Path(os.path.realpath(_plain_part(given)))
            for match in matches:
                yield from _walk(match, root, avoid, by_search=True)
            if not matches:
                yield Found(given, Path(given), Path(given).name, "matches no file")
        else:
            yield Found(given, Path(given), Path(given).name, "does not exist")


def _root_of(given: Path) -> Path:
    """Return the directory that a path may not lead out of: itself, or the one it stands in."""
    return Path(os.path.realpath(given if given.is_dir() and not given.is_symlink() else given.parent))


def _plain_part(pattern: str) -> Path:
    """Return the directory in front of the first wildcard."""
    parts = Path(pattern).parts
    plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:plain])


def _walk(given: str, root: Path, avoid: str, by_search: bool = False) -> Iterator[Found]:
    path = Path(os.path.realpath(given))
    if not path.is_relative_to(root):
        yield Found(given, path, Path(given).name, f"leads out of {root}; give the path of the file itself")
    elif _is_directory(path):
        # A linked directory inside the one given is reached by its own path.
        if str(path) != os.path.realpath(avoid) and (path == root or not Path(given).is_symlink()):
            try:
                children = sorted(os.listdir(path))  # noqa: PTH208 (names are all that is needed)
            except OSError as error:
                yield Found(given, path, Path(given).name, f"cannot be listed: {error.strerror}")
                return
            for child in children:
                if not child.startswith("."):
                    yield from _walk(os.path.join(given, child), root, avoid, by_search=True)  # noqa: PTH118
    else:
        yield Found(given, path, Path(given).name, _problem(Path(given).name, path), by_search)


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _problem(name: str, path: Path) -> str | None:
    if not name.isprintable():
        return "has a name with characters that cannot be shown; rename it"
    try:
        regular = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return "is a link to nothing"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    return None if regular else "is not a regular file"

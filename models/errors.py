"""Mistakes of the user, told in one line; everything else that raises is a bug and keeps its trace."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong and what would be right, in one sentence; `main.py` prints it and exits with code 2."""


class Failed(Exception):
    """A check that was asked for found something wrong and has said what; `main.py` exits with code 1."""


class Stopped(Exception):
    """A job was asked to stop and has saved; the same command goes on. `main.py` says so and exits with code 0."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that a table lacks, offering the nearest one that it has."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"there is {listed}."
    return UserError(f"unknown {kind} {name!r}; {hint}")

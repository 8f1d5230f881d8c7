"""Verify that our code gives the numbers of a folder of reference outputs (`jobs/parity/reference.py` says its form).

Every array is recomputed and compared within the manifest's tolerance. Readable lines first; the last line is one JSON object:

    {"checked": arrays compared, "failed": of them and of all else that is wrong, "skipped": {array: reason},
     "inputs": [arrays that others are computed from], "models": {name: {"parameters", "ok"}},
     "arrays": {name: {"max_abs_diff" and, in tolerances, "of_tolerance", or, of integers and booleans, "share_equal"; "ok";
                       "note" where it is not}}}

A skipped array fails as well: nothing that the files hold is passed over.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jobs.parity.cast import Cast
from jobs.parity.comparison import Finding, Recomputed, compare
from jobs.parity.generators import GeneratorSubject
from jobs.parity.reference import Missing, Reference, Wanted
from jobs.parity.rules import find, given
from jobs.parity.subjects import NoRule, Subject
from models.errors import Failed

MARGINS = {"tokens": "top2_gap", "indices": "index_margin"}  # arrays beside choices that say how clear they were


def run(config: ConfigDict, workdir: Path, *, folder: Path) -> None:
    """Verify a folder and say what was found; nothing is written.

    Args:
      config: with the defaults of all fields.
      workdir: not looked at.
      folder: of reference outputs.

    Raises:
      Failed: something differs.
      UserError: the folder is damaged or of another form.
    """
    # Accelerators would round the factors of products otherwise.
    with jax.default_matmul_precision("highest"):
        result = verify(Reference(folder), config)
    print(json.dumps(result, allow_nan=False))
    if result["failed"]:
        raise Failed


def verify(reference: Reference, config: ConfigDict) -> dict[str, Any]:
    """The JSON object; prints a line for every group of arrays, and one for everything that is wrong."""
    cast = Cast(reference, config)
    result: dict[str, Any] = {"checked": 0, "failed": 0, "skipped": {}, "inputs": [], "models": {}, "arrays": {}}
    groups: dict[tuple[str, str], list[Wanted]] = {}
    for wanted in reference.wanted:
        groups.setdefault((cast.group(wanted), wanted.file), []).append(wanted)
    for (group, file), arrays in groups.items():
        verify_group(result, cast, group, file, arrays)
    for wanted in reference.unnamed():
        group = cast.group(wanted)
        try:
            find(cast.subject(group, wanted.file), cast.own_name(group, wanted))
            wrong(result, "skipped", wanted.label, "the manifest gives no tolerance for it")
        except NoRule as reason:
            wrong(result, "skipped", wanted.label, str(reason))
    result["checked"] = len(result["arrays"])
    print(f"{result['checked']} arrays checked, {result['failed']} failed, {len(result['skipped'])} skipped; "
          f"{len(result['inputs'])} inputs")  # fmt: skip
    return result


def verify_group(result: dict[str, Any], cast: Cast, group: str, file: str, arrays: list[Wanted]) -> None:
    """The arrays of a model in one file, or those of one word."""
    began, title, shares = time.monotonic(), group, {"": 0.0}
    subject = cast.subject(group, file)
    if isinstance(subject, Subject):
        title = f"{subject.title}, {subject.loaded.parameters:,} parameters"
        result["models"][group] = {"parameters": subject.loaded.parameters, "ok": not subject.loaded.problems}
        for problem in subject.loaded.problems:
            wrong(result, None, group, problem)
    for wanted in arrays:
        try:
            finding = examine(cast, subject, group, wanted)
        except NoRule as reason:
            wrong(result, "skipped", wanted.label, str(reason))
            continue
        if finding is None:
            result["inputs"].append(wanted.label)
            continue
        result["arrays"][wanted.label] = told(finding)
        shares[wanted.label] = finding.share
        if not finding.ok:
            wrong(result, None, wanted.label, finding.note)
    if isinstance(subject, GeneratorSubject):  # tokenizers are asked for pictures later
        subject.release()
    worst = max(shares, key=lambda label: shares[label])
    print(f"{title}: {len(shares) - 1} arrays in {time.monotonic() - began:.1f} s; the largest difference is "
          f"{shares[worst]:.2g} of what is allowed{worst and f', of {worst}'}")  # fmt: skip


def examine(cast: Cast, subject: Any, group: str, wanted: Wanted) -> Finding | None:
    """Recompute an array and compare it; None for an input.

    Raises:
      NoRule: it is not known how to compute it.
    """
    reference = cast.reference
    if not reference.holds(wanted.name, wanted.file):
        return Finding(False, {}, np.inf, f"{wanted.file} lacks it, and the manifest names it")
    want = reference.array(wanted.name, wanted.file)
    if (want.shape, want.dtype.name) != (wanted.shape, wanted.dtype):
        return Finding(False, {}, np.inf, f"it is {want.dtype.name} {want.shape}, and in the manifest {wanted.dtype} "
                                          f"{wanted.shape}")  # fmt: skip
    found = find(subject, cast.own_name(group, wanted))
    if found.rule is given:
        return None
    try:
        found_array = found.rule(subject, found.name)
    except Missing as error:
        return Finding(False, {}, np.inf, str(error))
    except (TypeError, ValueError, IndexError) as error:  # of inputs that do not fit the model
        return Finding(False, {}, np.inf, f"it cannot be computed: {str(error).strip().splitlines()[0]}")
    got = found_array if isinstance(found_array, Recomputed) else Recomputed({"": found_array})
    return compare(got, want, wanted, margins(reference, wanted))


def margins(reference: Reference, wanted: Wanted) -> np.ndarray | None:
    """How clear the reference's choices were, where an array beside them says so."""
    before, _, last = wanted.name.rpartition("/")
    beside = f"{before}/{MARGINS[last]}" if last in MARGINS else f"{wanted.name}_gap"
    return reference.array(beside, wanted.file) if reference.has(beside) else None


def told(finding: Finding) -> dict[str, Any]:
    """What the result says of an array; numbers that JSON lacks are null."""
    numbers = {name: value if math.isfinite(value) else None for name, value in finding.numbers.items()}
    if "max_abs_diff" in numbers:
        numbers["of_tolerance"] = float(f"{finding.share:.3g}") if math.isfinite(finding.share) else None
    return {**numbers, "ok": finding.ok, **({"note": finding.note} if finding.note else {})}


def wrong(result: dict[str, Any], section: str | None, label: str, reason: str) -> None:
    """Count and print something that is wrong."""
    result["failed"] += 1
    if section is not None:
        result[section][label] = reason
    print(f"  FAILED {label}: {reason}")

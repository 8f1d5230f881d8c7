"""Our arrays against a reference's."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jobs.parity.reference import Wanted


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """An array as our code has it.

    Attributes:
      ways: the array by each way in which it was computed; all of them are compared.
      view: what of it is compared; of the reference too.
      margins: makes, of an array of choices, how clear each was.
    """

    ways: Mapping[str, Any]
    view: Callable[[np.ndarray], np.ndarray] = lambda x: x
    margins: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a comparison found.

    Attributes:
      ok: within the tolerance.
      numbers: share_equal of integers and booleans; max_abs_diff of all others and of integers that may differ.
      share: the largest difference, in tolerances.
      note: on what differs most; "" where all is well.
    """

    ok: bool
    numbers: dict[str, float]
    share: float = 0.0
    note: str = ""


def compare(got: Recomputed, want: np.ndarray, wanted: Wanted, margins: np.ndarray | None = None) -> Finding:
    """Every way of ours against the reference's array; the worst counts.

    Args:
      got: ours.
      want: the reference's.
      wanted: what the manifest says of it.
      margins: how clear the reference's choices were, of the shape of `want`; for notes.
    """
    findings = []
    for way, array in got.ways.items():
        finding = compare_one(np.asarray(array), want, wanted, got, margins)
        if finding.note and way:
            finding = dataclasses.replace(finding, note=f"by {way}: {finding.note}")
        findings.append(finding)
    return max(findings, key=lambda finding: (not finding.ok, finding.share))


def compare_one(
    array: np.ndarray, want: np.ndarray, wanted: Wanted, of: Recomputed, margins: np.ndarray | None
) -> Finding:
    """One way of ours against the reference's array."""
    if array.shape != want.shape:
        return Finding(False, {}, np.inf, f"its shape is {array.shape} here, {want.shape} there")
    discrete = want.dtype.kind in "iub"
    got, want = (of.view(x).astype(np.int64 if discrete else np.float64) for x in (array, want))
    same = (got == want) | ((got != got) & (want != want))
    with np.errstate(invalid="ignore"):  # what is not finite
        difference = np.where(same, 0.0, np.abs(got - want))
        difference[np.isnan(difference)] = np.inf
        allowed = wanted.atol + wanted.rtol * np.abs(want)
        shares = np.where(same, 0.0, difference / np.where(allowed > 0, allowed, np.finfo(np.float32).tiny))
    shares[np.isnan(shares)] = np.inf
    ok = bool((same | ((difference <= allowed) & np.isfinite(difference))).all())
    numbers = {}
    if discrete:
        numbers["share_equal"] = float(same.mean()) if same.size else 1.0
    if not discrete or wanted.atol:
        numbers["max_abs_diff"] = float(difference.max(initial=0.0))
    share = float(shares.max(initial=0.0))
    if ok:
        return Finding(ok, numbers, share)
    both = (None if of.margins is None else np.asarray(of.margins()), margins)
    return Finding(ok, numbers, share, described(got, want, shares, allowed, both))


def described(
    got: np.ndarray, want: np.ndarray, shares: np.ndarray, allowed: np.ndarray, margins: tuple[np.ndarray | None, ...]
) -> str:
    """The first wrong choice, or the largest difference."""
    discrete = got.dtype.kind == "i"
    found = (shares > 1).argmax() if discrete else shares.argmax()
    place = tuple(int(i) for i in np.unravel_index(found, got.shape))
    said = f"{int((shares > 1).sum())} of {got.size} differ; at {place} {got[place]:.9g} here, {want[place]:.9g} there"
    if not discrete:
        return f"{said}, {abs(got[place] - want[place]):.3g} where {allowed[place]:.3g} is allowed"
    told = [
        f"{margin[place]:.3g} {where}"
        for where, margin in zip(("here", "there"), margins)
        if margin is not None and np.shape(margin) == got.shape
    ]
    return f"{said}; from the first to the second choice {', '.join(told)}" if told else said

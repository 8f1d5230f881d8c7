"""The names of ImageNet's classes: `imagenet_classes.txt` has a line a class, its WordNet id and its names in WordNet."""

import functools
from pathlib import Path

from models.errors import UserError, unknown


def class_id(name: str) -> int:
    """The id of a class of ILSVRC 2012, 0 to 999, in the order of the WordNet ids.

    Args:
      name: one of the class's names ("tabby", "Tabby cat") or its WordNet id ("n02123045"), in any case.

    Raises:
      UserError: no class has that name, or several have it.
    """
    classes = _classes()
    if (key := name.lower()) not in classes:
        raise unknown("ImageNet class", key, classes)
    found = classes[key]
    if len(found) > 1:
        listed = ", ".join(f"{i} ({line})" for i, line in found.items())
        raise UserError(f"{name!r} names {len(found)} ImageNet classes; give the id or WordNet id of one: {listed}.")
    return next(iter(found))


@functools.cache
def _classes() -> dict[str, dict[int, str]]:
    """For every name in lower case the classes that bear it: id -> line of the file."""
    classes: dict[str, dict[int, str]] = {}
    for i, line in enumerate(Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines()):
        wordnet_id, names = line.split(" ", 1)
        for name in (wordnet_id, *names.lower().split(", ")):
            classes.setdefault(name, {})[i] = line
    return classes

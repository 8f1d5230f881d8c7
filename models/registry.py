"""A config section with a `name` builds what its folder's table lists under that name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import UserError, unknown


def build(kind: str, table: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], **context: Any) -> Any:
    """Call the table's entry with the section's other fields and what the caller knows (`context`).

    Args:
      kind: what is built, for messages ("quantizer").
      table: name -> constructor.
      section: a config section; `name` picks the entry, the other fields are its keyword arguments.
      **context: keyword arguments that the config does not hold (sizes, random numbers).

    Raises:
      UserError: the table lacks the name, or the constructor lacks a field; the nearest one is offered.
    """
    fields = dict(section)
    name = fields.pop("name")
    if name not in table:
        raise unknown(kind, name, table)
    constructor = table[name]
    # A module's own signature is its __init__'s: its metaclass takes anything.
    signature = inspect.signature(constructor.__init__ if inspect.isclass(constructor) else constructor)
    accepted = [p for p in signature.parameters if p != "self" and p not in context]
    for field in fields:
        if field not in accepted:
            raise UserError(f"{kind} {name!r}: {unknown('field', field, accepted)}")
    return constructor(**fields, **context)

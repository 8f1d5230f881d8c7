"""Batches on their way to the devices while the step before them runs."""

from collections.abc import Callable
from typing import Any

import grain
from grain.experimental import ThreadPrefetchIterDataset


def prefetch(batches: grain.IterDataset, place: Callable[[Any], Any], depth: int = 2) -> grain.DatasetIterator:
    """Iterate over `place(batch)`, drawn and placed ahead by one background thread, in order.

    `get_state` and `set_state` speak of what `next` has handed out, not of what lies ready, so that a checkpoint between
    two steps resumes bit for bit. What fails in the thread is raised by the `next` that would have handed it out. `close`
    waits for the thread; whoever stops early must call it.

    Args:
      batches: a dataset, whose own iterator this one is instead of.
      place: starts the copy to the devices, which it need not wait for.
      depth: batches that lie ready, at most; one more may be in the making. 0 draws in the caller's thread.
    """
    return iter(ThreadPrefetchIterDataset(batches.map(place), prefetch_buffer_size=depth))

"""What the attention kernels for Hopper GPUs are built of: warpgroups that copy or compute, their products, and the mask.

A block of threads takes one row of blocks of one head and walks its part of the list of visits. One warpgroup copies what
passes by, in several stages, ahead of those that compute, each of which has 64 slots of the row.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from models.kernels.block_sizes import Blocks
from models.kernels.pallas_tpu import HIDDEN, LOG2_E
from models.kernels.visits import WHOLE, bounds, columns, visits
from models.masks import Visibility

ROWS = 64  # of a warpgroup's products
# Of a thread, where two warpgroups compute: all three start with 168, and the one that copies leaves most of its own to them.
COPYING_REGISTERS, COMPUTING_REGISTERS = 40, 232
MATRIX = plgpu.Layout.WGMMA  # where a warpgroup keeps a matrix
BY_ROW, BY_COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)  # and where an entry for each of its rows, or columns


@dataclasses.dataclass(frozen=True)
class Call:
    """What is known of a call before it runs.

    Attributes:
      batch: B.
      heads: H, of queries.
      shared: heads of queries that share one of keys.
      width: d, as it is filled up.
      blocks: sizes of a block, multiples of 64.
      stages: how many of the blocks that pass by are in use or on their way.
      slots: of the queries and of the keys, in whole blocks.
      by_keys: whether blocks of keys are the rows, by which all heads pass that share them.
      by_sample: whether every sample has a mask of its own.
      ends: whether some key ends being seen.
      scale: of the scores.
      interpret: how the kernel is run on a CPU, if it is.
    """

    batch: int
    heads: int
    shared: int
    width: int
    blocks: Blocks
    stages: int
    slots: Blocks
    by_keys: bool
    by_sample: bool
    ends: bool
    scale: float
    interpret: Any

    @property
    def rows(self) -> int:
        """Of blocks."""
        return self.slots[self.by_keys] // self.blocks[self.by_keys]

    @property
    def computing(self) -> int:
        """Warpgroups that do."""
        return self.blocks[self.by_keys] // ROWS

    @property
    def passing(self) -> int:
        """Slots of a block that pass by the row."""
        return self.blocks[not self.by_keys]

    def laid(self, x: jax.Array, layout: Any) -> jax.Array:
        """An array in registers; the interpreter has none."""
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def constant(self, value: float, shape: tuple[int, ...], layout: Any = MATRIX) -> jax.Array:
        """A float32 array of it."""
        return self.laid(jnp.full(shape, value, jnp.float32), layout)

    def spread(self, row: Any, shape: tuple[int, ...], *, of_keys: bool) -> jax.Array:
        """What shared memory has for every key, or every query, over their scores."""
        axis = int(of_keys != self.by_keys)
        return over(self.laid(row[...], (BY_ROW, BY_COLUMN)[axis]), shape, axis)

    def products(
        self, *terms: tuple[jax.Array, Any, Any], meanwhile: Callable[[], None] = lambda: None
    ) -> list[jax.Array]:
        """total + a b of every (total, a, b), all of them under way at once.

        This alone is not interpreted as it is compiled: the interpreter multiplies neither registers nor what is turned.

        Args:
          terms: float32 in registers; bfloat16 there or in shared memory; and bfloat16 in shared memory.
          meanwhile: what is done before they are waited for.
        """
        if self.interpret:
            meanwhile()
            sums = [total + jnp.dot(found(a), found(b), preferred_element_type=jnp.float32) for total, a, b in terms]
            plgpu.commit_smem()
            return sums

        def start(totals: Sequence[Any]) -> None:
            for total, (_, a, b) in zip(totals, terms, strict=True):
                plgpu.wgmma(total, a, b.of.transpose((1, 0)) if isinstance(b, Turned) else b)
            meanwhile()

        return list(pl.run_state(start)(tuple(plgpu.ACC.init(total) for total, *_ in terms)))

    def scores(self, products: jax.Array, flags: jax.Array, time: Any, spans: Any) -> jax.Array:
        """Scores of base 2, `HIDDEN` where they are not seen.

        Args:
          products: of queries and keys.
          flags: of the visit.
          time: of the queries, in shared memory.
          spans: from when on, and until when, keys are seen, likewise.
        """

        def compared(x: jax.Array) -> jax.Array:
            now = self.spread(time, x.shape, of_keys=False)
            start, *end = (self.spread(spans.at[n], x.shape, of_keys=True) for n in range(1 + self.ends))
            seen = start <= now
            plgpu.commit_smem()  # what was read is overwritten by a copy
            return jnp.where(seen & (now < end[0]) if end else seen, x, HIDDEN)

        return jax.lax.cond(flags & WHOLE != 0, lambda x: x, compared, products * (self.scale * LOG2_E))


class Turned(NamedTuple):
    """A matrix in shared memory whose rows are to be columns."""

    of: Any


def found(x: Any) -> jax.Array:
    """What stands in a matrix, wherever it is."""
    return x.of[...].T if isinstance(x, Turned) else x[...]


def over(x: jax.Array, shape: tuple[int, ...], axis: int = 0) -> jax.Array:
    """An entry for every row (axis 0) or column (1), over a matrix."""
    return jax.lax.broadcast_in_dim(x, shape, (axis,))


@dataclasses.dataclass(frozen=True)
class Walk:
    """Where a warpgroup is, and what it visits.

    Attributes:
      call: what is known.
      warpgroup: its number.
      sample: of the batch.
      head: of queries, or of keys where blocks of these are the rows.
      row: of blocks.
      mask: the mask's sample.
      begin: of the row's part of the list.
      count: of its visits.
      others: of every visit on the list, the block that passes by.
      flags: of every visit.
      ready: a barrier for every stage, at which its copies arrive.
      free: likewise, at which those arrive who have done with it.
    """

    call: Call
    warpgroup: jax.Array
    sample: jax.Array
    head: jax.Array
    row: jax.Array
    mask: jax.Array
    begin: jax.Array
    count: jax.Array
    others: Any
    flags: Any
    ready: Any
    free: Any

    @property
    def own(self) -> Any:
        """The warpgroup's slots of the row."""
        return pl.ds(self.row * (self.call.computing * ROWS) + self.warpgroup * ROWS, ROWS)

    @property
    def heads(self) -> int:
        """That pass by one after the other."""
        return self.call.shared if self.call.by_keys else 1

    def visited(self, n: jax.Array) -> jax.Array:
        """Where the n-th visit stands on the list; behind the last one, anywhere on it."""
        return self.begin + (jnp.minimum(n, self.count - 1) if self.heads == 1 else jax.lax.rem(n, self.count))

    def head_of(self, n: jax.Array) -> jax.Array:
        """The head that passes by at the n-th visit."""
        if not self.call.by_keys:
            return jax.lax.div(self.head, jnp.int32(self.call.shared))
        return self.head if self.heads == 1 else self.head * self.heads + jax.lax.div(n, self.count)

    def copies(self, copy: Callable[[jax.Array, Any, jax.Array], Sequence[tuple[Any, Any]]]) -> None:
        """In the last warpgroup, copy what passes by as soon as a stage is free.

        Args:
          copy: of a head and its slots, to a stage: (from, to) of every copy.
        """
        call = self.call

        @pl.when(self.warpgroup == call.computing)
        def last() -> None:
            if call.computing == 2:
                plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")

            # Every use of a stage is waited for, the last ones too: a barrier's phases must not be missed.
            length = self.count * self.heads

            @pl.loop(0, length + call.stages)
            def step(n: jax.Array) -> None:
                stage = jax.lax.rem(n, jnp.int32(call.stages))
                other = self.others[self.visited(n)]  # read before the wait, which is when it takes no time

                @pl.when(n >= call.stages)
                def used() -> None:
                    plgpu.barrier_wait(self.free.at[stage])

                @pl.when(n < length)
                def ahead() -> None:
                    at = pl.ds(other * call.passing, call.passing)
                    copied(self.ready.at[stage], *copy(self.head_of(n), at, stage))

    def computes(self, compute: Callable[[], None]) -> None:
        """Do this in the other warpgroups."""

        @pl.when(self.warpgroup < self.call.computing)
        def others() -> None:
            if self.call.computing == 2:
                plgpu.set_max_registers(COMPUTING_REGISTERS, action="increase")
            compute()

    def fold(self, visit: Callable[..., Sequence[jax.Array]], start: Sequence[jax.Array]) -> Sequence[jax.Array]:
        """What a row's visits make of the start; each is given the stage, its flags, and what there is so far."""

        def step(n: jax.Array, carry: Sequence[jax.Array]) -> Sequence[jax.Array]:
            stage, flags = jax.lax.rem(n, jnp.int32(self.call.stages)), self.flags[self.visited(n)]
            plgpu.barrier_wait(self.ready.at[stage])
            carry = visit(stage, flags, *carry)
            if self.call.by_keys:
                plgpu.commit_smem()  # statistics were read, and are overwritten by a copy
            plgpu.barrier_arrive(self.free.at[stage])
            return tuple(carry)

        return jax.lax.fori_loop(0, self.count * self.heads, step, tuple(start))


def copied(barrier: Any, *pairs: tuple[Any, Any]) -> None:
    """Start copies to shared memory, each of which arrives at the barrier."""
    for source, target in pairs:
        plgpu.copy_gmem_to_smem(source, target, barrier)


def written(*results: tuple[jax.Array, Any, Any]) -> None:
    """Write every (value, by way of, to), and wait until it is."""
    for x, staged, _ in results:
        staged[...] = x.astype(staged.dtype)
    plgpu.commit_smem()
    for _, staged, target in results:
        plgpu.copy_smem_to_gmem(staged, target)
    plgpu.wait_smem_to_gmem(0)


def matrices(count: int, rows: int, width: int) -> Any:
    """So many matrices in shared memory, swizzled as tensor cores read them."""
    return plgpu.SMEM(
        (count, rows, width), jnp.bfloat16, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    )


def run(
    call: Call,
    kernel: Any,
    visibility: Visibility,
    arrays: Sequence[jax.Array],
    *,
    out: Sequence[Any],
    scratch: Mapping[str, Any],
    copies: tuple[int, int],
    name: str,
) -> Sequence[jax.Array]:
    """Run a kernel for every row of blocks of every sample and head.

    Args:
      call: what is known.
      kernel: of one row: is given its walk, what is read, the mask's columns, what is written, and scratch by name.
      visibility: the mask.
      arrays: what is read, in whole blocks.
      out: shapes of what is written.
      scratch: shared memory.
      copies: that a warpgroup waits for at first ("loaded"), and at every visit.
      name: of the kernel.
    """
    visit = visits(visibility, *call.blocks, by_keys=call.by_keys)
    samples = call.batch if call.by_sample else 1
    whole = columns(visibility, *call.slots, batch=call.batch)

    def body(bounds: Any, others: Any, flags: Any, *refs: Any, ready: Any, free: Any, **scratch: Any) -> None:
        warpgroup, sample, head, row = map(jax.lax.axis_index, ("warpgroup", "sample", "head", "row"))
        mask = sample if call.by_sample else jnp.int32(0)
        line = mask * call.rows + row
        begin = bounds[line]
        count = bounds[line + 1] - begin
        kernel(
            Walk(call, warpgroup, sample, head, row, mask, begin, count, others, flags, ready, free), *refs, **scratch
        )

    barriers = {
        "loaded": plgpu.Barrier(num_arrivals=copies[0], num_barriers=call.computing),
        "ready": plgpu.Barrier(num_arrivals=copies[1], num_barriers=call.stages),
        "free": plgpu.Barrier(num_arrivals=call.computing, num_barriers=call.stages),
    }
    return plgpu.kernel(
        body,
        out_type=list(out),
        scratch_types={**scratch, **barriers},
        grid=(call.heads // call.shared if call.by_keys else call.heads, call.rows, call.batch),
        grid_names=("head", "row", "sample"),
        num_threads=call.computing + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        kernel_name=name,
        interpret=call.interpret or None,
    )(
        *map(
            jnp.asarray, (bounds(visit, samples * call.rows), visit.query if call.by_keys else visit.key, visit.flags)
        ),
        *arrays,
        whole.q_time,
        jnp.stack(whole[1 : 2 + call.ends], axis=1),
    )

"""What a TPU's compiler makes of attention: bundles of instructions, one a cycle, as scheduled for chips that are not here.

libtpu writes them to files as it compiles, where LIBTPU_INIT_ARGS asks for it before it starts.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.masks import MASKS, by_splash, served
from jobs.topologies import open_topology
from models.attention import recomputed
from models.kernels import pallas_tpu
from models.kernels.visits import WHOLE, visits
from models.masks import Visibility

ADDRESS = re.compile(r" *(?:0x[0-9a-f]+|0) +(L[HBE]|P[BF]|CT)? *:")  # and what control flow makes of it
KERNEL = re.compile(r"\d+-([A-Za-z_]\w*)(?:\.\d+)*-\d+-final_bundles\.txt")
HEADS = 2
SQUARE = 4096  # side of large matrices
PASSES = ("forward", "backward")


class Region(NamedTuple):
    """Bundles that run one after the other, between two branches, and the instructions among them that start products."""

    bundles: int
    products: int


class Kernel(NamedTuple):
    """What a program calls: all its bundles, and its regions with products."""

    bundles: int
    inner: list[Region]


class Chip(NamedTuple):
    """A kind of TPU, and the folder in which its compiler leaves what it writes."""

    device: Any
    folder: Path


def open_chip(topology: str) -> Chip:
    """To be called before libtpu starts."""
    folder = dump()
    return Chip(open_topology(topology).devices[0], folder)


@cache
def dump() -> Path:
    """Where libtpu leaves files: one folder, of which it is told as it starts."""
    folder = tempfile.mkdtemp(prefix="bundles")
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    jax.config.update("jax_enable_compilation_cache", False)  # what is read back from a cache leaves no files
    return Path(folder)


def compiled(chip: Chip, run: Callable[..., Any], *shapes: tuple[int, ...]) -> dict[str, Kernel]:
    """What a program on bfloat16 is made of, by its names there, where it has matrix products.

    The files of a dump are many; they are deleted once read.
    """
    mesh = Mesh(np.array([chip.device]), ("chip",))
    arrays = [jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())) for x in shapes]
    with jax.set_mesh(mesh):
        jax.jit(run).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()
    found = {}
    for path in sorted(chip.folder.glob("*-final_bundles.txt")):
        whole = list(regions(path.read_text()))
        inner = [region for region in whole if region.products]
        if inner and (name := KERNEL.fullmatch(path.name)):
            found[name[1]] = Kernel(sum(region.bundles for region in whole), inner)
    for path in chip.folder.iterdir():
        path.unlink()
    return found


def regions(text: str) -> Iterator[Region]:
    """The regions of a program."""
    bundles = products = 0
    for line in text.splitlines():
        if not (at := ADDRESS.match(line)):
            continue
        if at[1]:
            yield Region(bundles, products)
            bundles = products = 0
        bundles, products = bundles + 1, products + line.count("vmatmul")
        if "sbr.rel" in line:
            yield Region(bundles, products)
            bundles = products = 0
    yield Region(bundles, products)


@cache
def densest(chip: Chip) -> float:
    """Products that a bundle starts where large matrices are multiplied: what the chip's matrix units can take."""
    found = compiled(chip, jnp.matmul, (SQUARE, SQUARE), (SQUARE, SQUARE))
    return max(region.products / region.bundles for kernel in found.values() for region in kernel.inner)


def both_passes(run: Callable[..., Any], q: Any, k: Any, v: Any, gradient: Any) -> Any:
    """A program of both passes."""
    out, back = jax.vjp(run, q, k, v)
    return out, back(gradient)


def rows(chip: Chip, name: str, width: int, blocks: pallas_tpu.Blocks) -> Iterator[dict[str, Any]]:
    """What a mask costs a head of this width, forward and backward, in blocks of this size; and splash attention's cost.

    `bundles_per_block` is the mean of the blocks that are visited, of which those that everybody sees are the cheaper ones;
    `mxu_use` is the share of the products that the chip could start in that time. Splash attention goes backward in one kernel
    or in two; the better way's bundles are given, of two the sum.
    """
    T, S = MASKS[name].as_array().shape
    shapes = (1, T, HEADS, width), (1, HEADS, S, width), (1, HEADS, S, width), (1, T, HEADS, width)
    theirs: dict[str, list[list[Region]]] = {kind: [] for kind in PASSES}  # of every way
    if served(name, *blocks):
        for fused in (False, True):
            way = by_splash(name, HEADS, *blocks, fused=fused)
            kernels = compiled(chip, partial(both_passes, way.run), *shapes)
            for kind in PASSES:
                theirs[kind].append(of_pass(kernels, kind).inner)
    ours = compiled(chip, kernel_under(MASKS[name], blocks), *shapes)
    for kind in PASSES:
        walk = visits(MASKS[name], *pallas_tpu.fitting(blocks, T, S), by_keys=kind == "backward")
        whole = np.mean(np.asarray(walk.flags) & WHOLE != 0)
        seen, compared = of_pass(ours, kind).inner  # blocks of which everybody sees everything, and the others
        cost = whole * seen.bundles + (1 - whole) * compared.bundles
        row = {
            "mask": name, "pass": kind, "width": width, "blocks": list(blocks), "blocks_visited": walk.length,
            "bundles_per_block": round(cost, 1), "mxu_use": round(seen.products / cost / densest(chip), 3),
            "splash_blocks_visited": None, "splash_bundles_per_block": None, "splash_mxu_use": None,
        }  # fmt: skip
        if theirs[kind]:
            best = min((sum_of(way) for way in theirs[kind]), key=lambda region: region.bundles)
            row |= {
                "splash_blocks_visited": way.visited, "splash_bundles_per_block": best.bundles,
                "splash_mxu_use": round(best.products / best.bundles / densest(chip), 3),
            }  # fmt: skip
        yield row


def of_pass(kernels: dict[str, Kernel], kind: str) -> Kernel:
    """The kernels of a pass, as one."""
    forward = {name for name in kernels if "fwd" in name or "forward" in name}
    chosen = [kernel for name, kernel in kernels.items() if (name in forward) == (kind == "forward")]
    return Kernel(sum(kernel.bundles for kernel in chosen), [region for kernel in chosen for region in kernel.inner])


def sum_of(inner: list[Region]) -> Region:
    """Regions of which every block runs all."""
    return Region(sum(region.bundles for region in inner), sum(region.products for region in inner))


def kernel_under(visibility: Visibility, blocks: pallas_tpu.Blocks) -> Callable[..., Any]:
    """Both passes of our kernel in blocks of this size, whatever the table of sizes says."""
    run = recomputed(partial(pallas_tpu.forward, blocks=blocks), partial(pallas_tpu.backward, blocks=blocks))
    return partial(both_passes, lambda q, k, v: run(q, k, v, visibility, scale=q.shape[-1] ** -0.5))

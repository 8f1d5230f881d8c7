"""What interprets kernels for Hopper GPUs on a CPU, made fast enough for tests."""

import threading

import jax
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

INTERPRET = InterpretGPUParams()
WATCHED = InterpretGPUParams(detect_races=True)  # between warpgroups, and from jax 0.11 on between them and copies
LOCK = threading.Lock()
COMPILED = {}  # by the program's id; it is kept, so that no other gets that id


def run_once_compiled(program, consts, *arguments):
    """As jax does it, which compiles what a warpgroup runs again for every block of threads and every warpgroup."""
    with LOCK:
        if id(program) not in COMPILED:
            run = jax.jit(lambda consts, *arguments: jax.core.eval_jaxpr(program, consts, *arguments))
            COMPILED[id(program)] = program, run.lower(consts, *arguments).compile()
    COMPILED[id(program)][1](consts, *arguments)


def races_found():
    """Whether two of the warpgroups that were interpreted last did not wait for each other."""
    return interpret_pallas_call.get_races().races_found


thread_map._run_jaxpr = run_once_compiled

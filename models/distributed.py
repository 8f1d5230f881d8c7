"""Several processes as one run: how they find each other, agree, wait for one another, and end.

Every process runs the same command. Who starts them, and starts them again, is the cluster's business (SLURM, Open MPI,
GKE, `gcloud ... --worker=all`); what it put into the environment is read here, or `--coordinator`, `--processes` and
`--process` say it.
"""

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from models.errors import UserError

T = TypeVar("T")

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process")
LONG = 7 * 24 * 3600  # seconds that one process may work while the others wait for it
SHORT = 5  # seconds in which processes that end for the same reason meet
_joined = threading.Event()
_moments = itertools.count()  # barriers have names, each used once; all processes count alike


def settings(environment: Mapping[str, str], flags: tuple[str | None, int | None, int | None]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` needs: nothing ({}) where it knows the cluster itself; None for one process.

    Args:
      environment: variables.
      flags: --coordinator, --processes, --process; None where they are not given.

    Raises:
      UserError: some are given and others not, or one makes no sense.
    """
    if any(value is not None for value in flags):
        return _checked(FLAGS, ["" if value is None else str(value) for value in flags])
    several = any(test(environment) for test in CLUSTERS.values())
    given = [environment.get(name, "") for name in VARIABLES]
    if any(given[1:]) or (given[0] and not several):
        return _checked(VARIABLES, given)
    return {} if several else None


def _checked(names: tuple[str, ...], values: list[str]) -> dict[str, Any]:
    """All three, or an error that names what is missing or wrong."""
    missing = [name for name, value in zip(names, values) if not value]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing; give all of {', '.join(names)}, or none for one process.")
    host, colon, port = values[0].rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"{names[0]} is {values[0]!r}; it must be HOST:PORT of process 0.")
    processes, process = _number(names[1], values[1]), _number(names[2], values[2])
    if not 0 <= process < processes:
        raise UserError(
            f"{names[2]} is {process} of {names[1]} {processes}; processes count from 0 to {processes - 1}."
        )
    return {"coordinator_address": values[0], "num_processes": processes, "process_id": process}


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r}; it must be a whole number.") from None


def _slurm(environment: Mapping[str, str]) -> bool:
    """A step of several tasks (`srun`); a batch script that was not started by srun is one process."""
    return "SLURM_STEP_NODELIST" in environment and _number("SLURM_NTASKS", environment.get("SLURM_NTASKS", "1")) > 1


def _open_mpi(environment: Mapping[str, str]) -> bool:
    size = _number("OMPI_COMM_WORLD_SIZE", environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    if (
        size > 1 and "OMPI_MCA_orte_hnp_uri" not in environment
    ):  # Open MPI 5 no longer says where the first process runs
        raise UserError("this Open MPI does not say where process 0 runs; start main.py by sh -c with --coordinator=HOST:PORT "
                        "--processes=$OMPI_COMM_WORLD_SIZE --process=$OMPI_COMM_WORLD_RANK.")  # fmt: skip
    return size > 1


def _gke(environment: Mapping[str, str]) -> bool:
    """Hosts of a TPU slice, or several slices, as GKE names them."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or _number("MEGASCALE_NUM_SLICES", environment.get("MEGASCALE_NUM_SLICES", "1")) > 1


def _tpu_vm(environment: Mapping[str, str]) -> bool:
    """A TPU VM, whose metadata tell jax the other hosts of its slice, if any."""
    chips = [path for pattern in ("accel[0-9]*", "vfio/[0-9]*") for path in Path("/dev").glob(pattern)]
    asked = environment.get("JAX_PLATFORMS", "tpu").split(",")[0] in ("", "tpu")
    return bool(chips) and asked and "TPU_SKIP_MDS_QUERY" not in environment and find_spec("libtpu") is not None


CLUSTERS: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "SLURM": _slurm, "Open MPI": _open_mpi, "GKE": _gke, "TPU VM": _tpu_vm,
}  # fmt: skip


def join(flags: tuple[str | None, int | None, int | None], timeout: int) -> None:
    """Join the other processes of this run, if there are any; afterwards jax sees the devices of all.

    Args:
      flags: as in `settings`.
      timeout: seconds to wait for the others.

    Raises:
      UserError: what `settings` raises, or not all were there in time.
    """
    chosen = settings(os.environ, flags)
    if chosen is None:
        return
    import jax

    failure: list[Exception] = []

    def connect() -> None:
        try:
            # Where jax gives up, its C++ aborts the process with a stack trace; so it must be more patient than we are.
            jax.distributed.initialize(**chosen, initialization_timeout=timeout + 3600)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    address = chosen.get("coordinator_address", "the address that the cluster names")
    if thread.is_alive():
        waited = "not all other processes came to" if chosen.get("process_id") == 0 else "there is no answer from"
        raise UserError(f"{waited} the coordinator at {address} within {timeout} s; start all processes, check that "
                        "process 0 runs at that address and that its port is open, or raise --join_timeout.")  # fmt: skip
    if failure:
        line = str(failure[0]).strip().splitlines()[0]
        raise UserError(f"the processes cannot join at {address}: {line}")
    _joined.set()
    if jax.process_index():  # what all of them would say is said by the first
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def several() -> bool:
    """Whether this process is, or was about to be, one of several."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def wait(seconds: float = LONG, moment: str = "") -> None:
    """Wait until every process has come here; moments that are not named are counted.

    No device takes part, so that the wait may be long; raises jax's error where one did not come in time.
    """
    if several():
        import jax
        from orbax.checkpoint import multihost

        barrier = multihost.get_barrier_sync_fn(processes=set(range(jax.process_count())))
        barrier(key=f"tessera-{moment or next(_moments)}", timeout_ms=int(1000 * seconds))


def first(work: Callable[[], T]) -> T:
    """The work's result: process 0 does it while the others wait, then they do it, finding what it has written."""
    if not several():
        return work()
    import jax

    if jax.process_index():
        wait()
        return work()
    try:
        return work()
    finally:
        wait()


def from_all(value: np.ndarray) -> np.ndarray:
    """Every process's array, of the same shape and dtype everywhere, one below the other in the order of processes."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


def leave(code: int) -> NoReturn:
    """End this process now, with an exit code.

    Of several processes, jax's own end would wait for others that wait for this one; those are aborted by jax, and the
    launcher sees the code. Of one, nothing that its threads still have to say comes after the reason.
    """
    if _joined.is_set():
        with contextlib.suppress(Exception):
            # Its own moment: work that waits for this process must not take its end for what it waits for.
            wait(SHORT, "end")  # where all fail alike, each may say so before process 0, whom jax needs, is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

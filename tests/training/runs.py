"""Runs of the tiny generator in processes of their own, for tests that kill them, several at a time where asked."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BATCH = 8


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(directory, *, processes=1, devices=1, pause=0.0, blind=None, **fields):
    """Processes that train to `directory`; `fields` are of the training section.

    Each has so many `devices` and takes `pause` seconds to read an example; process 1 cannot read the checkpoint of step
    `blind`.
    """
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
    }  # fmt: skip
    started = []
    for process in range(processes):
        joined = [address, processes, process] if processes > 1 else [None, None, None]
        options = {"join": joined, "directory": str(directory), "pause": pause, "blind": blind, "fields": fields}
        started.append(subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        ))  # fmt: skip
    return started


def finish(started, code=0):
    """(stdout, stderr) of each, all of which must end with this exit code."""
    said = [process.communicate(timeout=240) for process in started]
    for process, (_, err) in zip(started, said):
        assert process.returncode == code, err[-3000:]
    return said


def kill(started):
    """What a launcher does with the processes that one of them has left."""
    for process in started:
        process.kill()
        process.communicate()


def steps(directory):
    folder = directory / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def contents(directory, step):
    """Checksums of every bit of the state, and the places in the data."""
    folder = directory / "checkpoints" / str(step)
    return json.loads((folder / "checksums" / "metadata").read_text()), sorted(
        path.read_text() for path in (folder / "data").glob("*.json")
    )


def losses(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for(condition, started):
    """Until it holds, while all processes run."""
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        for process in started:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)


def tiny_run(directory, *, mesh=None, devices=None, pause=0.0, **fields):
    """Train, on a mesh of these sizes over the first so many devices."""
    import grain
    import jax
    from conftest import heldout_tokens, make_generator_learner, tiny_config, token_examples

    from input_pipeline.pipeline import process_batches
    from models import sharding
    from training.loop import train

    config = tiny_config()
    config.generator.update(depth=1)
    section = {**config.training.generator.to_dict(), "batch_size": BATCH, "ema_decay": 0.9, **fields}
    sizes = {**dict.fromkeys(sharding.MESH_AXES, 1), **(mesh or {"fsdp": -1})}
    placed = sharding.make_mesh(sizes, jax.devices()[:devices])
    reader = sharding.reader_of(placed)
    examples = token_examples(64)

    def slowly(row):
        time.sleep(pause)
        return row

    rows = [{name: column[i] for name, column in examples.items()} for i in range(64)]
    records = grain.MapDataset.source(rows).seed(0).shuffle().repeat(None).map(slowly)
    dataset = process_batches(records, BATCH // reader.readers, drop_remainder=True, ahead=False, reader=reader)
    train(make_generator_learner(config), dataset, heldout_tokens, section, Path(directory), mesh=placed, seed=0)


def cannot_read(step):
    import orbax.checkpoint as ocp

    restore = ocp.StandardCheckpointHandler.restore

    def failing(self, directory, *arguments, **options):
        if directory.parent.name == str(step):
            raise OSError("this process does not see it")
        return restore(self, directory, *arguments, **options)

    ocp.StandardCheckpointHandler.restore = failing


def main(options):
    from models import distributed
    from models.errors import Stopped, UserError

    try:
        distributed.join(tuple(options["join"]), 60)
        if options["blind"] is not None and options["join"][2] == 1:
            cannot_read(options["blind"])
        tiny_run(options["directory"], pause=options["pause"], **options["fields"])
    except Stopped as stopped:
        print(stopped)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(2)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Tessera's one command.

    python main.py [--config=configs/NAME.py[:ARG]] [--workdir=DIR] [--job=JOB] [--config.FIELD=VALUE ...]

Without arguments it runs the demo. A job on an existing workdir needs no --config: the workdir holds its own.
"""

import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from models import distributed
from models.errors import Failed, Stopped, UserError, unknown
from models.process import tune_malloc

JOBS = ("demo", "train", "extract", "sample", "evaluate", "search", "report", "import", "export", "verify",
        "compile")  # fmt: skip
SHORT = {"reference": "evaluation.reference", "follow": "evaluation.follow", "features": "sample.features",
         "edit": "sample.edit", "mask": "sample.mask"}  # flags that stand for config fields  # fmt: skip
ALONE = ("search", "report", "import", "export", "verify", "compile")  # of one process, wherever they are started
MODULES = {"import": "import_"}  # of the jobs whose name is a keyword
ROOT = Path(__file__).resolve().parent
DEMO = str(ROOT / "configs" / "digits.py")

flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> by default.")
flags.DEFINE_string("reference", None, "evaluate, search: train, test, a folder, an npz of images or of statistics.")
flags.DEFINE_bool("follow", None, "evaluate: wait for a training's checkpoints and evaluate each.")
flags.DEFINE_string("features", None, "sample: an npz of captions' features, for a generator of captions.")
flags.DEFINE_string("edit", None, "sample: an image of which a part is painted anew.")
flags.DEFINE_string("mask", None, "sample: an image of its size, white where it is painted anew.")
flags.DEFINE_bool("profile", False, "train: write a trace of five steps of each stage to W/<stage>/trace.")
flags.DEFINE_string("source", "", "import, export: whose checkpoints, llamagen or var.")
flags.DEFINE_list("input", [], "import: FILE[,FILE], of a tokenizer, a generator, or both; verify: a folder.")
flags.DEFINE_list("output", [], "export: FILE[,FILE] to write, tokenizer and generator.")
flags.DEFINE_string("coordinator", None, "Of several processes: HOST:PORT of process 0, where no cluster says it.")
flags.DEFINE_integer("processes", None, "Their number.")
flags.DEFINE_integer("process", None, "This one's, from 0.")
flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for them.", lower_bound=1)
flags.DEFINE_string("topology", "", "compile: chips, such as v5e:16x16, v4, v5p, v6e, tpu7x, or h100x8.")
flags.DEFINE_bool("json", False, "compile: one JSON object in the last line.")
flags.DEFINE_string("job", "demo", f"What to do: {', '.join(JOBS)}.")


def main(argv: list[str]) -> None:
    """Run the job; a user's mistake is one line and exit code 2."""
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is no option; options begin with -- (--help lists them).")
        job = flags.FLAGS.job
        if job not in JOBS:
            raise unknown("job", job, JOBS)
        workdir = local(flags.FLAGS.workdir or default_workdir())
        # jax is imported only once the command line is right
        if job not in ALONE:
            given = flags.FLAGS
            distributed.join((given.coordinator, given.processes, given.process), given.join_timeout)
        module = importlib.import_module(f"jobs.{MODULES.get(job, job)}")
        config = distributed.first(lambda: choose_config(job, workdir))
        module.run(config, workdir, **further(job))
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on")
    except Failed:
        distributed.leave(1)
    except UserError as error:
        fail(error)
    except Exception:
        if not distributed.several():
            raise
        traceback.print_exc()
        distributed.leave(1)


def choose_config(job: str, workdir: Path) -> ConfigDict:
    """The config of the command line, or, where it names none, the workdir's own; overrides apply to either."""
    from configs import base
    from jobs import workdir as run

    flag: Any = flags.FLAGS["config"]
    if job == "verify":  # whose models tell their own
        return base.get_config()
    if job == "import":  # which completes it by what the files say
        config = base.get_config() if flag.using_default_value else flag.value
        config.experiment = "" if flag.using_default_value else experiment(config_flags.get_config_filename(flag))
        return config
    if job != "compile":
        run.bring_config(flag.value.checkpoints, workdir)
    exists = (workdir / "config.json").exists()
    if exists and flag.using_default_value:
        config = run.complete(run.read_config(workdir), base.get_config())
    else:
        config = flag.value
        config.experiment = experiment(config_flags.get_config_filename(flag))
    config.update_from_flattened_dict(config_flags.get_override_values(flag))
    given = {field: flags.FLAGS[name].value for name, field in SHORT.items()}
    config.update_from_flattened_dict({field: value for field, value in given.items() if value is not None})
    if job == "compile":  # which needs no dataset, and leaves the workdir alone
        config.data.classes = config.data.classes or (exists and run.read_config(workdir).data.classes) or 0
        return config
    return run.prepare(config, workdir, write=job in ("demo", "train"))


def further(job: str) -> dict[str, Any]:
    """What a job takes beside config and workdir."""
    if job == "verify":
        if len(flags.FLAGS.input) != 1:
            raise UserError("--job=verify needs --input=DIR, a folder of reference outputs.")
        return {"folder": Path(flags.FLAGS.input[0])}
    if flags.FLAGS.profile and job != "train":
        raise UserError("--profile is for --job=train.")
    if job == "train":
        return {"profile": flags.FLAGS.profile}
    if job == "compile":
        return {"topology": flags.FLAGS.topology, "as_json": flags.FLAGS.json}
    if job not in ("import", "export"):
        return {}
    if flags.FLAGS.workdir is None:
        raise UserError(f"--job={job} needs --workdir=DIR.")
    files = {"source": flags.FLAGS.source, "files": flags.FLAGS.input if job == "import" else flags.FLAGS.output}
    return files | ({"overrides": config_flags.get_override_values(flags.FLAGS["config"])} if job == "import" else {})


def experiment(name: str) -> str:
    """What --config names, in words that hold in any folder: from this file's folder on, or, elsewhere, from the root on."""
    path, colon, argument = name.partition(":")
    return f"{Path(path).resolve()}{colon}{argument}".removeprefix(f"{ROOT}/")


def local(workdir: str) -> Path:
    """A folder that the file system knows."""
    if "://" in workdir:
        raise UserError(
            f"--workdir={workdir} is no folder; give a folder, and --config.checkpoints={workdir} for what is in a bucket."
        )
    return Path(workdir)


def default_workdir() -> str:
    """runs/digits for configs/digits.py, runs/llamagen-size=B for configs/llamagen.py:size=B."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return str(Path("runs") / re.sub(r"[^\w.=,-]", "_", f"{Path(path).stem}{argument and '-'}{argument}"))


def parse(argv: list[str]) -> list[str]:
    """Parse the command line; the config's file and fields are checked here."""
    try:
        config_flags.DEFINE_config_file("config", DEMO, "Experiment.", sys_argv=argv)
        rest = flags.FLAGS(argv)
        config: Any = flags.FLAGS["config"].value
        config.to_dict()  # a file that cannot be read is told only when it is used
        return rest
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        from configs.base import get_config
        from jobs.workdir import flat

        known = flat(get_config())
        for name in re.findall(r"^--?config\.([\w.]+)", "\n".join(argv), re.MULTILINE):
            if name not in known:
                fail(unknown("config field", name, known))
        if isinstance(error, OSError):
            fail(UserError(f"config file {config_flags.get_config_filename(flags.FLAGS['config'])} cannot be read."))
        last_line = str(error).strip().splitlines()[-1]  # of a trace, where the file itself raised
        fail(UserError(last_line.removeprefix("ValueError: ")))


def fail(error: UserError) -> NoReturn:
    """Say what was wrong and exit."""
    print(f"error: {error}", file=sys.stderr)
    distributed.leave(2)


if __name__ == "__main__":
    tune_malloc()
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)

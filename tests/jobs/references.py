"""Folders of reference outputs, and what their verification says."""

import json
import shutil
from pathlib import Path

import numpy as np

from configs import base
from jobs import verify
from models.errors import Failed

NPZ = ("ref.npz", "ref_rule.npz")


def verified(folder, capsys):
    """The result of a verification, and its readable lines."""
    capsys.readouterr()
    try:
        verify.run(base.get_config(), Path("nowhere"), folder=folder)
        failed = False
    except Failed:
        failed = True
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert failed == bool(result["failed"])
    assert result["checked"] == len(result["arrays"])
    return result, lines


def excerpt(source, to, *beginnings, names=lambda name: name, change=lambda name, array: array):
    """A copy of a folder with only the arrays that begin so, their names and their models' changed, and their numbers."""
    to.mkdir()
    manifest = json.loads((source / "manifest.json").read_text())
    rules = json.loads((source / "rule_weights.json").read_text())
    for file in NPZ:
        kept = {name: said for name, said in manifest["arrays"][file].items() if name.startswith(beginnings)}
        if kept:
            with np.load(source / file) as arrays:
                np.savez(to / file, **{names(name): change(name, arrays[name]) for name in kept})
        manifest["arrays"][file] = {
            names(name): {**said, "description": said["description"].replace(name, names(name))}
            for name, said in kept.items()
        }
    manifest["arrays"] = {file: arrays for file, arrays in manifest["arrays"].items() if arrays}
    for model in manifest["models"].values():
        for file in model.get("files", ()):
            shutil.copy(source / file, to / file)
            (to / file).chmod(0o644)
    for content, file in ((manifest, "manifest.json"), (rules, "rule_weights.json")):
        content["models"] = {names(f"{name}/").removesuffix("/"): model for name, model in content["models"].items()}
        (to / file).write_text(json.dumps(content))
    return to

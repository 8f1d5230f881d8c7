import argparse
import copyreg
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from interop.pickles import read_pickle
from interop.torch_files import Namespace, is_torch, read_torch
from models.errors import UserError

torch = pytest.importorskip("torch", reason="torch writes the files to read")

FORMATS = {"zip": True, "legacy": False}
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
          "complex128", "complex64"]  # fmt: skip


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Saves in one of the two formats, and gives the path."""

    def saved(value, name="file.pth"):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=FORMATS[request.param])
        return tmp_path / name

    return saved


class Attack:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def assert_same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert str(theirs.dtype) == f"torch.{ours.dtype}"
        assert ours.shape == tuple(theirs.shape)
        bits = theirs.detach().contiguous().reshape(-1).view(torch.uint8) if theirs.numel() else torch.zeros(0)
        np.testing.assert_array_equal(np.ascontiguousarray(ours).reshape(-1).view(np.uint8), bits.numpy())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, save):
    values = torch.arange(-5, 7).reshape(3, 4).to(getattr(torch, dtype))
    path = save([values, values[0, 0], values[:0]])
    assert_same(read_torch(path), torch.load(path))


def test_views_of_storages(save):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "transposed": base.permute(2, 0, 1), "sliced": base[1:3, ::2, 1:], "offset": base[2, 3, 4], "whole": base,
        "expanded": base[0, 0, :1].expand(7), "diagonal": base.diagonal(), "empty": base[4:], "flat": base.reshape(-1)[7:],
    }  # fmt: skip
    path = save(views)
    ours = read_torch(path)
    assert_same(ours, torch.load(path))
    assert np.shares_memory(ours["whole"], ours["transposed"])
    assert not ours["whole"].flags.writeable


def test_containers_parameters_and_state_dicts(save):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(4, 5))
    state = network.state_dict()
    path = save({"state": state, "step": 7, "name": "x", "sizes": (1, [2.5, None, True]), "parameter": network[0].weight,
                 "sorted": OrderedDict(b=torch.ones(1), a=torch.zeros(2))})  # fmt: skip
    ours = read_torch(path)
    assert_same(ours, torch.load(path, weights_only=True))
    assert ours["state"]["1.num_batches_tracked"].dtype == np.int64


PARAMETERS = {  # what pickles a parameter, as torch has done it since its first versions
    "called": lambda data: (torch.nn.Parameter, (data,), (True, False, OrderedDict())),
    "created": lambda data: (copyreg.__newobj__, (torch.nn.Parameter, data), (True, False, OrderedDict())),
    "by its state": lambda data: (
        copyreg.__newobj__, (torch.nn.Parameter,), (data, None, OrderedDict(), True, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("reduce", [None, *PARAMETERS.values()], ids=["tensors", *PARAMETERS])
def test_files_of_the_first_versions(reduce, tmp_path):
    """torchvision's vgg16-397923af.pth is one: no gradient flag with a tensor, and a parameter by its class."""
    tensors, storages = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16().float()[1:]}, {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, torch.UntypedStorage):
                storages[str(value._cdata)] = value
                return "storage", torch.FloatStorage, str(value._cdata), "cpu", value.nbytes() // 4, None
            return None

        def reducer_override(self, value):
            if type(value) is torch.nn.Parameter:
                return reduce(value.data)
            if type(value) is torch.Tensor:
                view = value.storage_offset(), tuple(value.shape), value.stride()
                return torch._utils._rebuild_tensor, (value.untyped_storage(), *view)
            return NotImplemented

    written = {name: torch.nn.Parameter(tensor) if reduce else tensor for name, tensor in tensors.items()}
    with (tmp_path / "file.pth").open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(part, file, 2)
        Pickler(file, 2).dump(OrderedDict(written))
        pickle.dump(list(storages), file, 2)
        for storage in storages.values():
            file.write((storage.nbytes() // 4).to_bytes(8, "little") + bytes(storage))
    judge = torch.load(tmp_path / "file.pth", weights_only=True)
    assert all(torch.equal(judge[name], tensor) for name, tensor in tensors.items())
    assert_same(dict(read_torch(tmp_path / "file.pth")), tensors)


def test_a_file_of_torch_is_recognised_by_its_content(save, tmp_path):
    assert is_torch(save({"a": torch.ones(3)}, "weights.npz"))
    np.savez(tmp_path / "a.npz", data=np.ones(3))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.ones(3)}))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "half").write_bytes(b"PK\x03\x04 half an archive")
    assert not any(is_torch(tmp_path / name) for name in ("a.npz", "a.pkl", "empty", "half"))


def test_a_damaged_archive_is_recognised_or_not(tmp_path):
    """A flipped bit can make Python's own reader raise much else than that the archive is bad."""
    torch.save({"ä": torch.ones(3)}, tmp_path / "file.pth")
    whole, path = (tmp_path / "file.pth").read_bytes(), tmp_path / "damaged"
    known = 0
    for at in range(8 * whole.index(b"PK\x01\x02"), 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        known += is_torch(path)
    assert 0 < known < 8 * len(whole) // 3


def test_a_file_that_is_cut_short_is_refused(save):
    path = save({"a": torch.arange(1000.0), "b": torch.ones(10, dtype=torch.int8)})
    whole = path.read_bytes()
    for length in [0, 1, 3, 20, 100, 200, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"file.pth is not a readable file of torch"):
            read_torch(path)


def test_a_legacy_file_that_promises_more_than_it_has_takes_no_memory(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(torch.zeros(200), path, _use_new_zipfile_serialization=False)
    huge = path.read_bytes().replace(
        b"K\xc8N", b"\x8a\x05\x00\x00\x00\x00\x7fN"
    )  # 200 elements become 545 thousand millions
    assert len(huge) > len(path.read_bytes())
    path.write_bytes(huge)
    with pytest.raises(UserError, match="not a readable file of torch"):
        read_torch(path)


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(torch.zeros(200), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    for size in (b"\xc9", b"\xff"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                # The size (200,) stands behind the storage, whose own count of elements is the first of the two.
                first, second = content.split(b"K\xc8\x85") if name == pickled else (content, None)
                archive.writestr(name, content if second is None else first + b"K" + size + b"\x85" + second)
        with pytest.raises(UserError, match="not a readable file of torch"):
            read_torch(path)


@pytest.mark.parametrize(
    ("call", "name"), [(os.system, r"(posix|nt)\.system"), (eval, r"(builtins|__builtin__)\.eval"), (open, r"io\.open")]
)
def test_what_would_run_code_is_refused_by_name_and_not_run(call, name, save, tmp_path):
    mark = tmp_path / "attacked"
    argument = {os.system: f"touch {mark}", eval: f"open({str(mark)!r}, 'w')", open: str(mark)}[call]
    attack = Attack(call, argument, *(["w"] if call is open else []))
    for value in (attack, {"weight": torch.ones(2), "other": [attack]}):
        with pytest.raises(UserError, match=f"wants to use {name}"):
            read_torch(save(value))
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": attack} if value is attack else attack))
        with pytest.raises(UserError, match=f"wants to use {name}"):
            read_pickle(tmp_path / "a.pkl")
    assert not mark.exists()


def test_a_legacy_file_cannot_attack_in_its_other_pickles(tmp_path):
    path, mark = tmp_path / "file.pth", tmp_path / "attacked"
    torch.save(torch.ones(2), path, _use_new_zipfile_serialization=False)
    whole, attack = path.read_bytes(), pickle.dumps(Attack(os.system, f"touch {mark}"), 2)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    keys = whole.rindex(b"\x80\x02]")
    for content in (attack, magic + attack, whole[:keys] + attack):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"\.system"):
            read_torch(path)
    assert not mark.exists()


def test_the_arguments_of_a_training_are_read_as_data(save):
    arguments = {"model": "GPT-B", "lr": 1e-4, "betas": (0.9, [0.95]), "ema": True, "path": None, "__class__": "x",
                 "__setstate__": 1, "nested": argparse.Namespace(a=1), "weight": torch.ones(2)}  # fmt: skip
    written = argparse.Namespace()
    vars(written).update(arguments)
    read = read_torch(save({"model": {"a": torch.ones(3)}, "args": written}))
    namespace = read["args"]
    assert type(namespace) is Namespace
    assert type(namespace.attributes["nested"]) is Namespace
    assert namespace.attributes.pop("nested").attributes == {"a": 1}
    arguments.pop("nested")
    assert_same(namespace.attributes, arguments)
    assert_same(read["model"], {"a": torch.ones(3)})
    assert not hasattr(namespace, "__dict__")
    assert not hasattr(namespace, "lr")
    assert Namespace().attributes == {}


def test_parameters_among_arguments_are_tensors(tmp_path):
    """As torch 0.1 wrote them, in the pickle of a legacy file."""
    start = b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00pctorch.nn.parameter\nParameter\n"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    (tmp_path / "a.pth").write_bytes(b"".join(parts) + start + b"K\x05\x85\x81sb." + pickle.dumps([], 2))
    assert read_torch(tmp_path / "a.pth").attributes == {"p": 5}


NAMESPACE = b"cargparse\nNamespace\n"  # the class; with b")\x81" an instance
NAME = b"X\x0c\x00\x00\x00__setstate__"
REFUSED = {
    "its class changed by attributes": NAMESPACE + b"}" + NAME + b"K\x01sb.",
    "its class changed by slots": NAMESPACE + b"N}" + NAME + b"K\x01s\x86b.",
    "its class's own method replaced": NAMESPACE + b"}X\x07\x00\x00\x00__new__K\x01sb.",
    "slots": NAMESPACE + b")\x81N}X\x0a\x00\x00\x00attributesK\x01s\x86b.",
    "attributes without names": NAMESPACE + b")\x81}K\x01K\x01sb.",
    "attributes that are an OrderedDict": NAMESPACE + b")\x81ccollections\nOrderedDict\n)Rb.",
    "attributes that are a list": NAMESPACE + b")\x81]b.",
    "made of something": NAMESPACE + b"K\x01\x85\x81.",
    "called with something": NAMESPACE + b"K\x01\x85R.",
    "an instance called": NAMESPACE + b")\x81)R.",
    "an item set": NAMESPACE + b")\x81K\x01K\x01s.",
    "something appended": NAMESPACE + b")\x81K\x01a.",
    "its method by name": b"\x80\x04\x8c\x08argparse\x8c\x16Namespace.__setstate__\x93.",
    "another class of its module": b"cargparse\nArgumentParser\n)R.",
    "a class beside it": b"cargparse\nAction\n)\x81.",
    "its module's other names": b"cargparse\n_os\n.",
}


@pytest.mark.parametrize("pickled", REFUSED.values(), ids=REFUSED)
def test_a_namespace_can_do_nothing(pickled, tmp_path):
    before = dict(vars(Namespace))
    for pickled_in_full in (pickled, b"\x80\x02" + NAMESPACE + b")\x81}X\x01\x00\x00\x00a" + pickled[:-1] + b"sb."):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", pickled_in_full)
        with pytest.raises(UserError) as caught:
            read_torch(tmp_path / "a.pt")
        assert "\n" not in str(caught.value)
    assert dict(vars(Namespace)) == before


@pytest.mark.parametrize(
    "value", [pathlib.PurePosixPath("x"), argparse.ArgumentParser, range(3), {1, 2}, Attack(eval, "1")]
)
def test_what_else_arguments_may_hold_is_refused_by_name(value, save):
    with pytest.raises(UserError, match="wants to use "):
        read_torch(save({"args": argparse.Namespace(a=1, b=[value])}))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_torch(tmp_path / "none.pth")
    for content in (b"<html>not found</html>", b"PK\x03\x04 half an archive", pickle.dumps([1]), pickle.dumps({1: 2})):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(UserError, match="not a readable file of torch"):
            read_torch(tmp_path / "file.pth")

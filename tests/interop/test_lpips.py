import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interop.download import PUBLIC_FILES
from interop.lpips import FILES, main
from tokenizer.perceptual import load_lpips, shapes

# The public files' places, and what we call the convolutions there, with (side, inputs, outputs); written out once more.
CONVOLUTIONS = {
    "vgg": {
        0: ("1_1", 3, 3, 64), 2: ("1_2", 3, 64, 64), 5: ("2_1", 3, 64, 128), 7: ("2_2", 3, 128, 128),
        10: ("3_1", 3, 128, 256), 12: ("3_2", 3, 256, 256), 14: ("3_3", 3, 256, 256),
        17: ("4_1", 3, 256, 512), 19: ("4_2", 3, 512, 512), 21: ("4_3", 3, 512, 512),
        24: ("5_1", 3, 512, 512), 26: ("5_2", 3, 512, 512), 28: ("5_3", 3, 512, 512),
    },
    "alex": {
        0: ("1_1", 11, 3, 64), 3: ("2_1", 5, 64, 192), 6: ("3_1", 3, 192, 384), 8: ("4_1", 3, 384, 256),
        10: ("5_1", 3, 256, 256),
    },
}  # fmt: skip
LIN = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
NETWORKS = sorted(LIN)


def random_states(torch, network):
    """Random tensors as in the two public files: the network's with a classifier, both of PyTorch's (O, I, h, w)."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.1.weight": torch.zeros(2, 2), "classifier.1.bias": torch.zeros(2)}
    for place, (_, side, inputs, outputs) in CONVOLUTIONS[network].items():
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator)
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=generator)
    lins = {f"lin{level}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
            for level, channels in enumerate(LIN[network])}  # fmt: skip
    return state, lins


@pytest.fixture(scope="module")
def all_states():
    torch = pytest.importorskip("torch", reason="the files to convert are written by torch")
    return {network: random_states(torch, network) for network in NETWORKS}


@pytest.fixture
def states(all_states):
    return all_states["alex"]


def save(states, folder, prefix=""):
    """The arguments of the command for two files with these tensors."""
    import torch

    for state, name in zip(states, ("network.pth", "lin.pth")):
        # The public files are of the time before torch wrote archives, and hold parameters rather than tensors.
        parameters = {key: torch.nn.Parameter(value) for key, value in state.items()}
        torch.save(parameters, folder / f"{prefix}{name}", _use_new_zipfile_serialization=False)
    return [str(folder / name) for name in (f"{prefix}network.pth", f"{prefix}lin.pth", "folder/lpips.npz")]


@pytest.fixture
def files(states, tmp_path):
    return save(states, tmp_path)


def assert_holds(path, network, states):
    """Every number of the states lies in the npz at its place."""
    loaded = load_lpips(path)
    state, lins = states
    for place, (ours, *_) in CONVOLUTIONS[network].items():
        kernel = state[f"features.{place}.weight"].numpy()
        np.testing.assert_array_equal(loaded[f"conv{ours}/kernel"], np.einsum("oihw->hwio", kernel))
        np.testing.assert_array_equal(loaded[f"conv{ours}/bias"], state[f"features.{place}.bias"])
    for level in range(5):
        np.testing.assert_array_equal(loaded[f"lin{level + 1}"], lins[f"lin{level}.model.1.weight"].flatten())
    with np.load(path) as file:
        assert set(file) == set(shapes(network))
        assert {file[name].dtype for name in file} == {np.dtype(np.float32)}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_number_arrives_at_its_place(network, all_states, tmp_path):
    files = save(all_states[network], tmp_path)
    assert main(files) == 0
    assert_holds(files[2], network, all_states[network])
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["lpips.npz"]


def test_a_network_by_name_takes_the_public_files(states, tmp_path, monkeypatch):
    """They lie in the cache here, as after a download."""
    network_file, lpips_file, out = save(states, tmp_path)
    found = dict(zip(FILES["alex"], (network_file, lpips_file)))
    monkeypatch.setattr("interop.lpips.public_file", lambda name: Path(found[name]))
    assert main(["alex", out]) == 0
    assert_holds(out, "alex", states)


def test_public_files_are_those_of_the_papers():
    for network, (first, second) in FILES.items():
        url, digits = PUBLIC_FILES[first]
        assert url == f"https://download.pytorch.org/models/{first}"
        assert first.endswith(f"-{digits[:8]}.pth")  # torchvision's names tell the checksum
        url, digits = PUBLIC_FILES[second]
        assert url.endswith(f"/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/{network}.pth")
        assert len(digits) == 64


def test_an_unknown_network_is_refused(tmp_path, capsys):
    assert_refused(["alexx", str(tmp_path / "lpips.npz")], "did you mean 'alex'?", capsys)


@pytest.mark.parametrize(
    ("which", "name", "change", "message"),
    [
        (0, "features.6.weight", None, "network.pth lacks the tensor 'features.6.weight'"),
        (0, "features.10.bias", None, "network.pth lacks the tensor 'features.10.bias'"),
        (0, "features.0.weight", None, "the tensor 'features.0.weight' is missing"),
        (1, "lin4.model.1.weight", None, "lin.pth lacks the tensor 'lin4.model.1.weight'"),
        (0, "features.3.weight", lambda leaf: leaf.transpose(0, 1), "'features.3.weight' has shape (64, 192, 5, 5)"),
        (0, "features.0.weight", lambda leaf: leaf[..., 1:, 1:], "'features.0.weight' has shape (64, 3, 10, 10)"),
        (1, "lin0.model.1.weight", lambda leaf: leaf[0], "'lin0.model.1.weight' has shape (64, 1, 1)"),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(which, name, change, message, states, files, capsys):
    import torch

    bad = {key: leaf for key, leaf in states[which].items() if key != name}
    if change:
        bad[name] = change(states[which][name])
    torch.save(bad, files[which])
    assert_refused(files, message, capsys)


def test_files_of_two_networks_do_not_mix(all_states, tmp_path, capsys):
    alex, vgg = save(all_states["alex"], tmp_path), save(all_states["vgg"], tmp_path, prefix="vgg-")
    assert_refused([vgg[0], alex[1], vgg[2]], "lin.pth: the tensor 'lin1.model.1.weight' has shape", capsys)
    assert_refused([alex[0], vgg[1], vgg[2]], "lin.pth: the tensor 'lin1.model.1.weight' has shape", capsys)


def test_a_refused_file_leaves_what_was_there(states, files, capsys):
    assert main(files) == 0
    before = load_lpips(files[2])["lin1"]
    capsys.readouterr()
    assert_refused([files[1], files[0], files[2]], "right order", capsys)
    np.testing.assert_array_equal(load_lpips(files[2])["lin1"], before)


def test_missing_and_unreadable_files_are_named(files, tmp_path, capsys):
    import torch

    missing = str(tmp_path / "none.pth")
    assert_refused([missing, *files[1:]], f"no file {missing}", capsys)
    for content in (b"", b"<html>not found</html>", b"PK\x03\x04 half an archive"):
        (tmp_path / "lin.pth").write_bytes(content)
        assert_refused(files, "lin.pth is not a readable file of torch", capsys)
    torch.save([torch.zeros(1)], files[1])
    assert_refused(files, "lin.pth holds no tensors by name", capsys)


def test_a_file_that_would_run_code_is_not_run(files, tmp_path, capsys):
    import torch

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"lin0.model.1.weight": Attack()}, files[1])
    assert main(files) == 2
    assert files[1] in capsys.readouterr().err
    assert not (tmp_path / "attacked").exists()


def test_torch_is_not_needed(states, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(files) == 0
    with pytest.raises(ImportError):
        import torch  # noqa: F401


def test_the_command_names_the_files_to_download():
    command = [sys.executable, "-m", "interop.lpips", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "vgg16-397923af.pth" in text
    assert "alexnet-owt-7be5be79.pth" in text
    assert "richzhang/PerceptualSimilarity" in text
    for wrong in (["one.pth"], ["one.pth", "two.pth", "three.pth", "out.npz"]):
        assert subprocess.run([*command[:3], *wrong], capture_output=True).returncode == 2


def assert_refused(arguments, message, capsys):
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1

import subprocess
import sys

import numpy as np
import pytest

from interop.lpips import main
from tokenizer.perceptual import SHAPES, load_lpips

# The public files' names and (inputs, outputs), written out once more.
VGG16 = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
OURS = ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"]
LIN = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def states():
    """Random tensors as in the two public files: VGG16's with a classifier, both of PyTorch's (O, I, h, w)."""
    torch = pytest.importorskip("torch", reason="the files to convert are torch's")
    generator = torch.Generator().manual_seed(0)
    vgg16 = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    for layer, (inputs, outputs) in VGG16.items():
        vgg16[f"features.{layer}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator)
        vgg16[f"features.{layer}.bias"] = torch.randn(outputs, generator=generator)
    lins = {f"lin{level}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
            for level, channels in enumerate(LIN)}  # fmt: skip
    return vgg16, lins


@pytest.fixture
def files(states, tmp_path):
    import torch

    for state, name in zip(states, ("vgg16.pth", "vgg.pth")):
        # The public files are of the time before torch wrote archives, and hold parameters rather than tensors.
        parameters = {key: torch.nn.Parameter(value) for key, value in state.items()}
        torch.save(parameters, tmp_path / name, _use_new_zipfile_serialization=False)
    return [str(tmp_path / name) for name in ("vgg16.pth", "vgg.pth", "folder/lpips.npz")]


def test_every_number_arrives_at_its_place(states, files, tmp_path):
    assert main(files) == 0
    loaded = load_lpips(files[2])
    vgg16, lins = states
    for layer, ours in zip(VGG16, OURS):
        kernel = vgg16[f"features.{layer}.weight"].numpy()
        np.testing.assert_array_equal(loaded[f"conv{ours}/kernel"], np.einsum("oihw->hwio", kernel))
        np.testing.assert_array_equal(loaded[f"conv{ours}/bias"], vgg16[f"features.{layer}.bias"])
    for level in range(5):
        np.testing.assert_array_equal(loaded[f"lin{level + 1}"], lins[f"lin{level}.model.1.weight"].flatten())
    with np.load(files[2]) as file:
        assert set(file) == set(SHAPES)
        assert {file[name].dtype for name in file} == {np.dtype(np.float32)}
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["lpips.npz"]


@pytest.mark.parametrize(
    ("which", "name", "change", "message"),
    [
        (0, "features.17.weight", None, "vgg16.pth lacks the tensor 'features.17.weight'"),
        (0, "features.28.bias", None, "vgg16.pth lacks the tensor 'features.28.bias'"),
        (1, "lin4.model.1.weight", None, "vgg.pth lacks the tensor 'lin4.model.1.weight'"),
        (0, "features.5.weight", lambda leaf: leaf.transpose(0, 1), "'features.5.weight' has shape (64, 128, 3, 3)"),
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
        (tmp_path / "vgg.pth").write_bytes(content)
        assert_refused(files, "vgg.pth is not a readable file of torch", capsys)
    torch.save([torch.zeros(1)], files[1])
    assert_refused(files, "vgg.pth holds no tensors by name", capsys)


def test_a_file_that_would_run_code_is_not_run(files, tmp_path, capsys):
    import torch

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"lin0.model.1.weight": Attack()}, files[1])
    assert_refused(files, "vgg.pth is not a readable file of torch", capsys)
    assert not (tmp_path / "attacked").exists()


def test_without_torch_it_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused([str(tmp_path / name) for name in ("a", "b", "c")], "pip install -e '.[import]'", capsys)


def test_the_command_names_the_files_to_download():
    command = [sys.executable, "-m", "interop.lpips", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "vgg16-397923af.pth" in text
    assert "richzhang/PerceptualSimilarity" in text
    assert subprocess.run([*command[:3], "one.pth"], capture_output=True).returncode == 2


def assert_refused(arguments, message, capsys):
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1

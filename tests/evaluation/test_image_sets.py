"""Sets of images: npz files, folders, datasets; the same pixels have the same name wherever they lie."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluation.image_sets import folder_images, npz_images, prepared, read_labels, read_split, split_images, spread
from models.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (7, 6, 5, 3), np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def folder_of(path, images):
    path.mkdir(parents=True)
    for n, image in enumerate(images):
        Image.fromarray(image).save(path / f"{n}.png")
    return path


@pytest.mark.parametrize("name", ["arr_0", "images", "anything"])
def test_an_npz_and_a_folder_of_the_same_pixels_are_the_same(tmp_path, name):
    file = npz_images(save(tmp_path / "a.npz", **{name: IMAGES}))
    folder = folder_images(folder_of(tmp_path / "b", IMAGES))
    np.testing.assert_array_equal(np.concatenate(list(folder.blocks(3))), IMAGES)
    np.testing.assert_array_equal(np.concatenate(list(file.blocks(4))), IMAGES)
    assert [len(block) for block in file.blocks(4)] == [4, 3]
    assert file.sha256 == folder.sha256
    changed = IMAGES.copy()
    changed[-1, -1, -1, -1] ^= 1
    assert npz_images(save(tmp_path / "c.npz", arr_0=changed)).sha256 != file.sha256
    reshaped = npz_images(save(tmp_path / "d.npz", arr_0=IMAGES.transpose(0, 2, 1, 3).copy().reshape(7, 6, 5, 3)))
    assert reshaped.sha256 != file.sha256


def test_adm_batches_are_images_with_labels_beside(tmp_path):
    file = npz_images(save(tmp_path / "a.npz", arr_0=IMAGES, arr_1=np.arange(7)))
    assert file.count == 7


@pytest.mark.parametrize("images", [IMAGES[..., :1], IMAGES[..., 0]])
def test_grey_becomes_colour(tmp_path, images):
    file = prepared(npz_images(save(tmp_path / "a.npz", images=images)), channels=3)
    np.testing.assert_array_equal(file.block(0, 7), np.repeat(IMAGES[..., :1], 3, -1))


def test_mixed_sizes_are_refused_and_can_be_brought_to_one(tmp_path):
    folder = folder_of(tmp_path / "b", IMAGES)
    Image.fromarray(IMAGES[0, :4]).save(folder / "7.png")
    with pytest.raises(UserError, match=r"mixed sizes \(6x5 and 4x5\)"):
        folder_images(folder).block(0, 10)
    with pytest.raises(UserError, match="mixed sizes"):
        _ = folder_images(folder).sha256
    assert prepared(folder_images(folder), channels=3, resolution=4).block(0, 10).shape == (8, 4, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES, "b": IMAGES}, "arr_0"),
        ({"arr_0": IMAGES.astype(np.float32)}, "uint8"),
        ({"arr_0": IMAGES[0, 0]}, "uint8"),
        ({"arr_0": IMAGES[0]}, r"uint8 \(6, 5, 3\)"),  # one image is not six grey ones
        ({"arr_0": IMAGES[:0]}, "uint8"),
        ({"arr_0": np.array([{"code": 1}])}, "Python objects"),
    ],
)
def test_what_is_no_images_is_refused(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        npz_images(save(tmp_path / "a.npz", **arrays))


def test_what_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match="not there"):
        npz_images(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"text")
    with pytest.raises(UserError, match="no readable npz"):
        npz_images(tmp_path / "b.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        folder_images(tmp_path / "empty")
    folder = folder_of(tmp_path / "broken", IMAGES)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        folder_images(folder).block(0, 7)


def test_damaged_arrays_and_hidden_files(tmp_path):
    path = save(tmp_path / "a.npz", arr_0=IMAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="arr_0 is damaged"):
        npz_images(path)
    folder = folder_of(tmp_path / "b", IMAGES)
    (folder / ".thumbs").mkdir()
    for name in ("._0.png", ".thumbs/0.png"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    assert folder_images(folder).count == len(IMAGES)


def test_evenly_spread():
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 5).tolist() == [0, 1, 2]
    assert spread(0, 5).tolist() == []


def dataset(**fields):
    """The digits, as a config's `data` section says it."""
    defaults = {
        "channels": 1,
        "resolution": 16,
        "corrupt_limit": 0,
        "crop_scale": (1.0, 1.0),
        "shift": 0,
        "flip": False,
    }
    return SimpleNamespace(name="digits", path="", classes=0, **defaults | fields)


def test_fewer_images_of_a_split_are_spread_over_it():
    data = dataset()
    everything, few = read_split(data, "train", 10_000), read_split(data, "train", 100)
    count = split_images(data, "train").count
    assert everything["image"].shape == (count, 16, 16, 1)
    np.testing.assert_array_equal(everything["label"], read_labels(data, "train"))
    chosen = np.arange(100) * count // 100
    np.testing.assert_array_equal(few["image"], everything["image"][chosen])
    np.testing.assert_array_equal(few["label"], everything["label"][chosen])


def test_augmented_images_are_the_same_ones_augmented():
    plain, mirrored = (read_split(dataset(flip=True), "test", 40, augment=augment) for augment in (None, 0))
    np.testing.assert_array_equal(plain["label"], mirrored["label"])
    flipped = (mirrored["image"] == plain["image"][:, :, ::-1]).all((1, 2, 3))
    same = (mirrored["image"] == plain["image"]).all((1, 2, 3))
    assert (flipped | same).all()
    assert 10 < flipped.sum() < 30
    again = read_split(dataset(flip=True), "test", 40, augment=0)
    np.testing.assert_array_equal(again["image"], mirrored["image"])


def test_as_many_unreadable_images_as_the_config_allows_are_left_out(tmp_path):
    for n, images in enumerate([IMAGES[:3], IMAGES[3:4], IMAGES[4:5], IMAGES[5:6]]):
        for split in ("train", "test"):
            folder_of(tmp_path / split / f"{n}", images)
    (tmp_path / "test" / "0" / "1.png").write_bytes(b"text")
    data = dataset(channels=3, resolution=4, corrupt_limit=1)
    data.name, data.path = "folder", str(tmp_path)
    assert read_split(data, "test", 100)["label"].tolist() == [0, 0, 1, 2, 3]
    data.corrupt_limit = 0
    with pytest.raises(UserError, match=r"1\.png is corrupt"):
        read_split(data, "test", 100)

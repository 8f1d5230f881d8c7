import io
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import CorruptImage, open_source
from models.errors import UserError


def contents(source):
    return [(record["image"].tobytes(), record["label"]) for record in (source[i] for i in range(len(source)))]


def write_npz(path, count, classes=2, **replaced):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 1), np.uint8)
    np.savez(path, **{"images": images, "labels": np.arange(count) % classes, **replaced})


# Digits


def test_the_digits_are_split_by_class_and_none_is_lost(section):
    from sklearn.datasets import load_digits

    train, test = (open_source(section(), split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    labels = np.array([test[i]["label"] for i in range(len(test))])
    of_class = np.bincount(load_digits().target)
    assert np.bincount(labels).tolist() == (of_class // 5).tolist()
    both = sorted(contents(train) + contents(test))
    expected = np.floor(load_digits().images * 255 / 16 + 0.5).astype(np.uint8)
    assert both == sorted((image.tobytes(), int(label)) for image, label in zip(expected, load_digits().target))
    assert train[0]["image"].shape == (8, 8, 1)
    assert train[0]["image"].dtype == np.uint8


def test_the_fifth_image_of_a_class_is_the_first_test_image_of_it(section):
    from sklearn.datasets import load_digits

    bunch, test = load_digits(), open_source(section(), "test")
    fifth_zero = bunch.images[np.flatnonzero(bunch.target == 0)[4]]
    first = next(test[i]["image"] for i in range(len(test)) if test[i]["label"] == 0)
    np.testing.assert_allclose(first[..., 0], fifth_zero * 255 / 16, atol=0.5)


# npz


def test_one_npz_gives_every_tenth_image_of_a_class_to_test(section, tmp_path):
    write_npz(tmp_path / "all.npz", 60, classes=3)
    train, test = (open_source(section(name="npz", path=str(tmp_path / "all.npz")), s) for s in ("train", "test"))
    assert [test[i]["label"] for i in range(len(test))] == [0, 1, 2, 0, 1, 2]
    values = [{int(s[i]["image"][0, 0, 0]) for i in range(len(s))} for s in (train, test)]
    assert values[1] == {27, 28, 29, 57, 58, 59}
    assert values[0] == set(range(60)) - values[1]


def test_a_directory_of_npz_keeps_its_own_split_and_counts_the_classes_of_both(section, tmp_path):
    write_npz(tmp_path / "train.npz", 12, classes=4)
    write_npz(tmp_path / "test.npz", 5, classes=2)
    train, test = (open_source(section(name="npz", path=str(tmp_path)), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 5)
    assert train.classes == test.classes == 4


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"images": np.zeros((6, 4, 4, 1), np.float32)}, r"images is float32 \(6, 4, 4, 1\).*must be uint8"),
        ({"images": np.zeros((6, 4, 4), np.uint8)}, r"must be uint8 \(N, H, W, 1 or 3\)"),
        ({"images": np.zeros((6, 4, 4, 2), np.uint8)}, r"must be uint8 \(N, H, W, 1 or 3\)"),
        ({"labels": np.zeros(6, np.float32)}, "must be integer"),
        ({"labels": np.zeros((6, 1), np.int64)}, "must be integer"),
        ({"labels": np.zeros(5, np.int64)}, "6 images and 5 labels"),
    ],
)
def test_a_malformed_npz_is_refused_with_what_is_expected(section, tmp_path, replaced, message):
    write_npz(tmp_path / "a.npz", 6, **replaced)
    with pytest.raises(UserError, match=message):
        open_source(section(name="npz", path=str(tmp_path / "a.npz")), "train")


def test_an_npz_that_is_missing_incomplete_or_no_npz_is_refused(section, tmp_path):
    path = tmp_path / "a.npz"
    data = section(name="npz", path=str(path))
    with pytest.raises(UserError, match=r"there is no .*a\.npz.*images and labels"):
        open_source(data, "train")
    np.savez(path, images=np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(UserError, match="lacks the array 'labels'"):
        open_source(data, "train")
    path.write_bytes(b"neither an archive nor an array")
    with pytest.raises(UserError, match="is no npz"):
        open_source(data, "train")
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(UserError, match="is no npz"):
        open_source(section(name="npz", path=str(path.with_suffix(".npy"))), "train")


# Folders


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "webp", "bmp"])
def test_a_folder_numbers_its_classes_by_sorted_name_and_reads_every_format(section, tmp_path, write_folder, suffix):
    write_folder(tmp_path, classes=("zebra", "ant"), count=2, suffix=suffix)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    source = open_source(section(name="folder", path=str(tmp_path)), "train")
    assert source.classes == 2
    assert [source[i]["label"] for i in range(len(source))] == [0, 0, 1, 1]
    assert abs(int(source[0]["image"][3, 3, 0]) - 20) <= 2  # "ant" was written second, from 20 on
    assert source[0]["image"].shape == (8, 8, 3)


def test_a_folder_without_test_gives_every_tenth_image_of_a_class_to_test(section, tmp_path, write_folder):
    write_folder(tmp_path, count=20)
    train, test = (open_source(section(name="folder", path=str(tmp_path)), split) for split in ("train", "test"))
    values = [sorted(int(s[i]["image"][0, 0, 0]) for i in range(len(s))) for s in (train, test)]
    assert values[1] == [9, 19, 29, 39]
    assert values[0] == sorted({*range(20), *range(20, 40)} - {9, 19, 29, 39})


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_folders_are_the_split(section, tmp_path, write_folder, name):
    write_folder(tmp_path / "train", count=10)
    write_folder(tmp_path / name, classes=("dog",), count=3)
    train, test = (open_source(section(name="folder", path=str(tmp_path)), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 3)
    assert {test[i]["label"] for i in range(3)} == {1}  # the ids are the training folders'


def test_a_train_folder_alone_is_split(section, tmp_path, write_folder):
    write_folder(tmp_path / "train", count=10)
    train, test = (open_source(section(name="folder", path=str(tmp_path)), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)


def test_folders_that_are_missing_empty_or_disagree_are_refused(section, tmp_path, write_folder):
    with pytest.raises(UserError, match="is no folder"):
        open_source(section(name="folder", path=str(tmp_path / "nowhere")), "train")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        open_source(section(name="folder", path=str(tmp_path / "empty")), "train")
    write_folder(tmp_path / "set" / "train", classes=("cat",))
    write_folder(tmp_path / "set" / "test", classes=("bird",))
    with pytest.raises(UserError, match="'bird'"):
        open_source(section(name="folder", path=str(tmp_path / "set")), "test")
    write_folder(tmp_path / "few", count=3)
    with pytest.raises(UserError, match="has no test images"):
        open_source(section(name="folder", path=str(tmp_path / "few")), "test")


def test_grey_palette_transparent_and_deep_pictures_are_read(section, tmp_path):
    (tmp_path / "a").mkdir()
    grey = Image.fromarray(np.full((8, 8), 77, np.uint8))
    grey.save(tmp_path / "a" / "0.png")
    grey.convert("P").save(tmp_path / "a" / "1.png")
    grey.convert("RGBA").save(tmp_path / "a" / "2.png")
    Image.fromarray(np.full((8, 8), 77 * 256 + 13, np.uint16)).save(tmp_path / "a" / "3.png")
    source = open_source(section(name="folder", path=str(tmp_path)), "train")
    images = [source[i]["image"] for i in range(4)]
    assert [image.shape[-1] for image in images] == [1, 3, 3, 1]
    assert all((image == 77).all() for image in images)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_truncated_file_raises_its_name(section, tmp_path, write_folder, suffix):
    write_folder(tmp_path, count=1, suffix=suffix)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    broken = tmp_path / "dog" / f"000.{suffix}"
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    source = open_source(section(name="folder", path=str(tmp_path)), "train")
    assert source[0]["label"] == 0
    with pytest.raises(CorruptImage, match=rf"dog.000\.{suffix}"):
        source[1]


# Which dataset it is


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_folder_has_a_digest_that_moves_with_it_and_is_no_other_folders(section, tmp_path, write_folder, suffix):
    def digest(root, split="train"):
        return open_source(section(name="folder", path=str(root)), split).digest()

    here = write_folder(tmp_path / "here", count=20, suffix=suffix)
    found = {digest(here), digest(here, "test")}
    assert digest(shutil.copytree(here, tmp_path / "moved")) == digest(here)
    changes = {
        "a file has another name": lambda root: (root / "cat" / f"003.{suffix}").rename(
            root / "cat" / f"0033.{suffix}"
        ),
        "a class has another name": lambda root: (root / "cat").rename(root / "bat"),
        "the classes are others": lambda root: (root / "bee").mkdir(),  # of no image, but cats are no longer 0
        "the pictures are larger": lambda root: [
            Image.new("RGB", (64, 64), (i, 0, 9)).save(path) for i, path in enumerate(sorted(root.rglob("*.*")))
        ],
        "an image is gone": lambda root: (root / "dog" / f"004.{suffix}").unlink(),
    }
    for change, work in changes.items():
        work(root := shutil.copytree(here, tmp_path / change))
        found.add(digest(root))
    assert len(found) == 2 + len(changes)


def test_the_digest_of_a_large_folder_does_not_look_at_every_file(section, tmp_path, write_folder, monkeypatch):
    write_folder(tmp_path / "train", count=10)
    source, looked_at, stat = open_source(section(name="folder", path=str(tmp_path)), "train"), [], os.stat
    monkeypatch.setattr("input_pipeline.sources.WEIGHED", 7)
    monkeypatch.setattr(os, "stat", lambda path, **options: looked_at.append(path) or stat(path, **options))
    assert source.digest()
    assert len([path for path in looked_at if str(path).endswith(".png")]) == 6  # every third of 18


def test_arrays_have_a_digest_of_their_records(section, tmp_path):
    def digest(path, split="train"):
        return open_source(section(name="npz", path=str(path)), split).digest()

    write_npz(tmp_path / "a.npz", 20)
    write_npz(tmp_path / "other-labels.npz", 20, labels=np.arange(20) // 10)
    pixels = np.array(np.load(tmp_path / "a.npz")["images"])
    write_npz(tmp_path / "shape.npz", 20, images=pixels.reshape(20, 2, 8, 1))
    pixels[11, 2, 3] ^= 1
    write_npz(tmp_path / "other-pixel.npz", 20, images=pixels)
    files = sorted(tmp_path.glob("*.npz"))
    assert len({*map(digest, files), digest(tmp_path / "a.npz", "test")}) == len(files) + 1
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(tmp_path / "a.npz", tmp_path / "elsewhere" / "b.npz")
    assert digest(moved) == digest(tmp_path / "a.npz")
    digits = {open_source(section(), split).digest() for split in ("train", "test")}
    assert digits == {open_source(section(), split).digest() for split in ("train", "test")}
    assert len(digits) == 2


# Splits and classes


def test_an_unknown_split_is_refused(section):
    with pytest.raises(UserError, match="unknown split 'tests'; did you mean 'test'"):
        open_source(section(), "tests")


def test_more_classes_than_the_config_says_are_refused_and_fewer_are_not(section):
    assert open_source(section(classes=12), "train").classes == 12
    with pytest.raises(UserError, match=r"data\.classes is 9 but 'digits' has 10"):
        open_source(section(classes=9), "train")


def test_a_negative_label_is_refused_when_read(section, tmp_path):
    write_npz(tmp_path / "a.npz", 3, labels=np.array([0, -1, 1]))
    source = open_source(section(name="npz", path=str(tmp_path / "a.npz")), "train")
    with pytest.raises(UserError, match="record 1 of the dataset has label -1"):
        source[1]


# TFDS

BUILD = textwrap.dedent("""
    import io, sys
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(num_classes=3)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0, 7), "validation": self._generate_examples(7, 10)}

        def _generate_examples(self, start, stop):
            for i in range(start, stop):
                file = io.BytesIO()
                Image.fromarray(np.full((6, 5, 3), i, np.uint8)).save(file, "png")
                file.seek(0)
                yield i, {"image": file, "label": i % 3}

    TinyPictures(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
""")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    script = directory / "tiny_pictures.py"
    script.write_text(BUILD)
    subprocess.run([sys.executable, script, directory], check=True, capture_output=True)
    return directory


def test_a_tfds_dataset_is_read_without_tensorflow(section, tfds_dir):
    train, test = (open_source(section(name="tiny_pictures", path=str(tfds_dir)), s) for s in ("train", "test"))
    assert (len(train), len(test), train.classes) == (7, 3, 3)
    records = [test[i] for i in range(3)]
    assert sorted(int(record["image"][0, 0, 0]) for record in records) == [7, 8, 9]
    assert all(record["label"] == record["image"][0, 0, 0] % 3 for record in records)
    assert records[0]["image"].shape == (6, 5, 3)
    assert "tensorflow" not in sys.modules


def test_a_tfds_dataset_has_a_digest_that_moves_with_it(section, tfds_dir, tmp_path):
    def digest(path, split):
        return open_source(section(name="tiny_pictures", path=str(path)), split).digest()

    moved = shutil.copytree(tfds_dir, tmp_path / "moved")
    found = {digest(path, split) for path in (tfds_dir, moved) for split in ("train", "test")}
    assert len(found) == 2
    (info,) = moved.rglob("dataset_info.json")
    info.write_text(info.read_text().replace('"7"', '"6"'))  # prepared anew, of fewer images
    assert digest(moved, "train") not in found


def test_a_corrupt_tfds_record_raises_its_name(section, tfds_dir, monkeypatch):
    source = open_source(section(name="tiny_pictures", path=str(tfds_dir)), "train")
    monkeypatch.setattr(io, "BytesIO", lambda data, original=io.BytesIO: original(data[:-30]))
    with pytest.raises(CorruptImage, match="tiny_pictures train record 4"):
        source[4]


def test_unknown_and_unprepared_tfds_datasets_are_told_in_one_sentence(section, tmp_path):
    for name, message in {
        "cifer10": r"unknown dataset 'cifer10'; did you mean 'cifar10'\?",
        "digit": "did you mean 'digits'",
        "Bad Name!": "unknown dataset 'Bad Name!'",
        "cifar10": r"holds no ArrayRecord files; prepare them with tfds\.builder\('cifar10', data_dir='/",
        "imagenette/999px": "'imagenette/999px': .*999px not found",
        "cifar10:9.9.9": "'cifar10:9.9.9': .*only: ",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            open_source(section(name=name, path=str(tmp_path)), "train")
        assert "\n" not in str(caught.value)

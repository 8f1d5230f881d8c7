import numpy as np
import pytest
from PIL import Image

from evaluation import pictures
from evaluation.pictures import BAND_GAP, GAP, MARGIN, image_grid, loss_curves, nearest_strip, reconstruction_strip


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def tile(sheet, row, column, side, *, left=MARGIN, extra=0):
    y, x = MARGIN + row * (side + GAP) + extra, left + column * (side + GAP)
    return sheet[y : y + side, x : x + side]


def test_grid_places_enlarged_images_row_by_row(tmp_path, digits):
    images = digits[0][:7]
    image_grid(tmp_path / "grid.png", images, 3)
    sheet = read(tmp_path / "grid.png")
    side = 3 * 64 + 2 * GAP + 2 * MARGIN
    assert sheet.shape == (side, side, 3)
    for n, image in enumerate(images):
        enlarged = image.repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)
        np.testing.assert_array_equal(tile(sheet, n // 3, n % 3, 64), enlarged)
    assert (tile(sheet, 2, 1, 64) == 255).all()
    assert (sheet[:MARGIN] == 255).all()
    assert (sheet[MARGIN : MARGIN + 64, MARGIN + 64 : MARGIN + 64 + GAP] == 255).all()


def test_grid_keeps_colours_and_orientation(tmp_path):
    images = np.zeros((1, 8, 40, 3), np.uint8)
    images[0, :, :20] = 255, 128, 0
    image_grid(tmp_path / "wide.png", images, 1)  # 40 wide: enlarged twice, to 80
    sheet = read(tmp_path / "wide.png")
    assert sheet.shape == (16 + 2 * MARGIN, 80 + 2 * MARGIN, 3)
    assert sheet[MARGIN, MARGIN].tolist() == [255, 128, 0]
    assert sheet[MARGIN, MARGIN + 40].tolist() == [0, 0, 0]


@pytest.mark.parametrize("write", [reconstruction_strip, nearest_strip])
def test_pairs_stand_one_over_the_other_beside_their_names(tmp_path, digits, write):
    above, below = digits[0][:5], digits[0][5:10]
    write(tmp_path / "pairs.png", above, below, columns=3)
    sheet = read(tmp_path / "pairs.png")
    assert sheet.shape[0] == 4 * 64 + 2 * GAP + BAND_GAP + 2 * MARGIN
    left = sheet.shape[1] - MARGIN - 3 * 64 - 2 * GAP
    assert left > 2 * MARGIN
    for n in range(5):
        band, column = divmod(n, 3)
        for row, images in enumerate((above, below)):
            found = tile(sheet, 2 * band + row, column, 64, left=left, extra=band * (BAND_GAP - GAP))
            np.testing.assert_array_equal(found[::4, ::4, :1], images[n])
    for row in range(2):  # a name in ink
        assert (sheet[MARGIN + row * (64 + GAP) :, :left][:64] < 128).any()


def test_curves_use_a_logarithmic_scale_where_it_helps(tmp_path, monkeypatch):
    scales = {}

    class Figure(pictures.Figure):
        def savefig(self, *arguments, **options):
            scales.update({axes.get_title("left"): axes.get_yscale() for axes in self.axes})
            super().savefig(*arguments, **options)

    monkeypatch.setattr(pictures, "Figure", Figure)
    steps = np.arange(0, 1000, 10)
    curves = {
        "error (mean squared)": (steps, np.exp(-steps / 200)),
        "loss (nats per token)": (steps, 2 + np.exp(-steps / 200)),
        "discriminator loss": (steps, np.cos(steps / 100)),
        "interrupted": (steps, np.where(steps < 500, np.exp(-steps / 100), np.nan)),
    }
    loss_curves(tmp_path / "curves.png", {title: {"training": curve} for title, curve in curves.items()})
    assert scales == dict(zip(curves, ["log", "linear", "linear", "log"]))
    assert read(tmp_path / "curves.png").shape == (560, 1200, 3)
    assert (tmp_path / "curves.png").stat().st_size < 300_000


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, digits, monkeypatch):
    path = tmp_path / "new" / "grid.png"
    image_grid(path, digits[0][:1], 1)
    before = path.read_bytes()

    def half_written(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        image_grid(path, digits[0][1:2], 1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]

"""The page: sound HTML that holds all it shows, escapes what is data, and marks the right figures."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.report.charts import BINS, Axis, Series, line_chart, linear_ticks, log_ticks, tick_label
from evaluation.report.descriptions import GROUPS, HIGHER, LOWER, METRICS, NEITHER, describe, headline, rank
from evaluation.report.markup import Html, element, image, number, png_file
from evaluation.report.page import Run, page
from evaluation.report.tables import Evaluation, best
from evaluation.report.training import training_curves

HOSTILE = "<script>alert('x')</script>&\"run\""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Every element with its attributes and its text, after a check that the tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"attribute twice in {tag}: {names}"
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, len(self.found) - 1))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> too many"
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1][0]}"
        self.open.pop()

    def handle_data(self, text):
        for _, index in self.open:
            self.texts[index] = self.texts.get(index, "") + text

    def all(self, tag, **wanted):
        """(attributes, text) of the elements of a tag and with these attributes."""
        return [
            (attributes, self.texts.get(index, ""))
            for index, (name, attributes) in enumerate(self.found)
            if name == tag and all(attributes.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]


def rows_of(parsed):
    """First cell -> (attributes, text) of the other cells, of all tables."""
    rows, index = {}, -1
    for position, (tag, attributes) in enumerate(parsed.found):
        if tag == "tr":
            index += 1
        elif tag in ("td", "th"):
            rows.setdefault(index, []).append((attributes, parsed.texts.get(position, "")))
    return {cells[0][1]: cells[1:] for cells in rows.values()}


def evaluation(step, missing=(), warnings=(), **metrics):
    return Evaluation(f"sequential-{step}", {"step": step}, metrics, dict(missing), warnings)


@pytest.fixture
def run(tmp_path, digits):
    """A run of which everything is known."""
    images, labels, _ = digits
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "strip.png")
    steps = [{"step": n, "loss": 5 / n, "learning_rate": 1e-3, "odd_scalar": n % 3} for n in range(1, 2001)]
    grid = [
        {"guidance_scale": g, "temperature": t, "fid_768": abs(g - 2) + t} for t in (1.0, 0.9) for g in (1.5, 2.0, 3.0)
    ]
    return Run(
        name="digits", about="Small.", facts={"dataset": "digits"},
        stages=[["Stage", "Model", "Parameters"], ["generator", "small", "1,234"]],
        metrics={"tokenizer": [], "generator": [*steps, {"step": 1000, "heldout/loss": 2.0}]},
        samples=(images[:300], labels[:300].astype(np.int32), "samples/x.npz"),
        reconstructions=tmp_path / "strip.png", neighbours=tmp_path / "strip.png",
        evaluations=[
            evaluation(300, fid=40.0, class_accuracy=0.5, near_copy_share=0.25, tokenizer_psnr=20.0, novel=1.5,
                       missing={"kid": "too few samples"}),
            evaluation(600, fid=30.0, class_accuracy=0.75, near_copy_share=None, tokenizer_psnr=20.0, novel=2.5,
                       warnings=["Only 20 samples."], missing={"kid": "too few samples"}),
            evaluation(900, fid=35.0, class_accuracy=0.625, near_copy_share=float("nan"), tokenizer_psnr=20.0, novel=0.5,
                       missing={"kid": "too few samples", "near_copy_share": "none"}),
        ],
        searches={"Step 900": {"rows": grid, "metric": "fid_768", "final": {"fid_768": 1.25, "step": 900}}},
        speeds=[["Sampler", "Images/s"], ["sequential", "12.5"]],
        config={"seed": 0, "data": {"name": "digits", "nested": {"flip": True}}}, changed={"seed": 3},
        versions={"jax": "1.2.3"}, command="python main.py", notes=["eval/broken.json cannot be read."],
    )  # fmt: skip


def test_page_is_balanced_and_holds_all_it_shows(run):
    text = page(run)
    parsed = Page(text)
    for tag, attributes in parsed.found:
        for name in ("src", "href", "srcset", "data", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:image/", "#")), f"{tag} {name}={address[:60]}"
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttp", text)
    assert len(text) < 3e6
    anchors = {attributes["href"][1:] for attributes, _ in parsed.all("a")}
    assert len(anchors) == 8
    assert anchors <= {attributes.get("id") for _, attributes in parsed.found}


def test_images_decode_and_small_ones_are_exact(run):
    images, labels, _ = run.samples
    found = {}
    for attributes, _ in Page(page(run)).all("img"):
        content = base64.b64decode(attributes["src"].partition("base64,")[2], validate=True)
        picture = Image.open(io.BytesIO(content))
        assert [str(side) for side in picture.size] == [attributes["width"], attributes["height"]]
        found.setdefault(attributes["alt"], []).append(np.asarray(picture))
    assert len(found) == 12  # ten classes and two strips
    for label in range(10):
        np.testing.assert_array_equal(found[f"sample of class {label}"], images[labels == label][:10, ..., 0])


def test_large_images_are_made_small():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8)
    (_, attributes), = Page(image(pixels, alt="")).found  # fmt: skip
    assert (attributes["width"], attributes["height"]) == ("128", "64")
    assert attributes["src"].startswith("data:image/jpeg")
    assert "class" not in attributes  # a reduced image is not drawn with hard pixels


def test_large_sheets_are_made_small_and_small_ones_kept(tmp_path, digits):
    noise = np.random.default_rng(0).integers(0, 256, (600, 2000, 3), np.uint8)
    for name, pixels in (("large", noise), ("small", digits[0][0, ..., 0])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (_, attributes), = Page(png_file(tmp_path / "large.png", alt="")).found  # fmt: skip
    assert (attributes["width"], attributes["height"]) == ("840", "252")
    assert attributes["src"].startswith("data:image/jpeg")
    assert len(attributes["src"]) < (tmp_path / "large.png").stat().st_size / 2
    (_, attributes), = Page(png_file(tmp_path / "small.png", alt="")).found  # fmt: skip
    assert base64.b64decode(attributes["src"].partition(",")[2]) == (tmp_path / "small.png").read_bytes()


def test_what_is_data_is_escaped(run):
    hostile = dataclasses.replace(
        run, name=HOSTILE, about=HOSTILE, facts={HOSTILE: HOSTILE}, stages=[[HOSTILE], [HOSTILE]],
        evaluations=[Evaluation(HOSTILE, {"step": 1, HOSTILE: n}, {HOSTILE: 1.0, "fid": None}, {"kid": HOSTILE, "fid": HOSTILE},
                                [HOSTILE]) for n in range(2)],
        searches={HOSTILE: {"rows": [{HOSTILE: HOSTILE, "guidance_scale": HOSTILE}], "metric": HOSTILE}},
        metrics={HOSTILE: [{"step": 1, HOSTILE: 1.0}]}, speeds=[[HOSTILE], [HOSTILE]],
        samples=(*run.samples[:2], HOSTILE),
        config={HOSTILE: HOSTILE, "a": {HOSTILE: HOSTILE}}, changed={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE},
        command=HOSTILE, notes=[HOSTILE],
    )  # fmt: skip
    parsed = Page(page(hostile))
    assert len(parsed.all("script")) == len(Page(page(run)).all("script")) == 1
    assert parsed.all("h1") == [({}, HOSTILE)]
    assert HOSTILE in parsed.all("title")[0][1]


def test_elements_escape_text_and_attributes_but_not_markup():
    inner = element("b", "<")
    assert inner == "<b>&lt;</b>"
    assert (
        element("p", inner, "&", title='"', data_x=None, class_="a")
        == '<p title="&quot;" class="a"><b>&lt;</b>&amp;</p>'
    )
    assert element("img", src="a") == '<img src="a">'


def test_best_of_a_row_follows_the_metric(run):
    rows = rows_of(Page(page(run)))

    def marked(title):
        return ["best" in attributes["class"] for attributes, _ in rows[title]]

    assert [text for _, text in rows["FID↓"]] == ["40.00", "30.00", "35.00"]
    assert marked("FID↓") == [False, True, False]
    assert [text for _, text in rows["Classes recognised↑"]] == ["50.0%", "75.0%", "62.5%"]
    assert marked("Classes recognised↑") == [False, True, False]
    assert marked("PSNR dB↑") == [False] * 3  # all alike
    assert marked("novel") == [False] * 3  # no direction is known


def test_best_ignores_what_is_no_number():
    values = [None, float("nan"), 2.0, 1.0, 2.0, float("inf")]
    assert best(values, LOWER) == {3}
    assert best(values, HIGHER) == {2, 4}
    assert best(values, NEITHER) == best([1.0, None], LOWER) == best([], LOWER) == set()


def test_missing_and_nan_metrics_are_shown_with_their_reason(run):
    parsed = Page(page(run))
    rows = rows_of(parsed)
    (_, number_), (_, null), (_, nan) = rows["Near copies↓"]
    assert [number_, null, nan] == ["25.0%", "–", "NaN"]
    notes = [text for _, text in parsed.all("p", class_="note")]
    assert notes == ["KID not measured: too few samples", "Near copies not measured: none"]
    assert "KID↓" not in rows  # measured nowhere


def test_warnings_and_notes_stand_in_the_open(run):
    boxes = [text for _, text in Page(page(run)).all("div", class_="warning")]
    assert boxes == ["eval/broken.json cannot be read.", "Only 20 samples."]  # the second is of an older evaluation
    newest = dataclasses.replace(run, evaluations=run.evaluations[:2])
    boxes = [text for _, text in Page(page(newest)).all("div", class_="warning")]
    assert boxes == ["eval/broken.json cannot be read.Only 20 samples."]


def test_headline_is_of_the_newest_evaluation(run):
    parsed = Page(page(run))
    figures = dict(zip(*[[text for _, text in parsed.all(tag)][:3] for tag in ("dt", "dd")]))
    assert figures["FID"] == "35.00"
    assert figures["Classes recognised"] == "62.5%"
    assert figures["PSNR"] == "20.00 dB"  # near copies are no number


def test_columns_say_in_what_they_differ(run):
    columns = [Evaluation("a", {"step": 9, "sampler.guidance_scale": g, "weights.generator": str(g)}, {"fid": g})
               for g in (1.0, 2.5)]  # fmt: skip
    columns += [dataclasses.replace(columns[1], name="b")]
    text = page(Run("r", evaluations=columns))
    heads = [text for _, text in Page(text).all("th", class_="number")]
    assert heads == ["step 9guidance scale 1", "step 9guidance scale 2.5a", "step 9guidance scale 2.5b"]


def test_one_row_a_search_entry_and_the_best_is_marked(run):
    text = page(dataclasses.replace(run, evaluations=(), stages=(), speeds=()))
    parsed = Page(text)
    assert len(parsed.all("tbody")) == 1
    assert len(parsed.all("tr")) == 1 + 6
    assert parsed.all("span", class_="best") == [({"class": "best"}, "0.900")]
    names = next(text for _, text in parsed.all("div", class_="legend"))
    assert names.startswith("temperature 1 1temperature 0.9 0.9")
    assert "judged in full: FID-768 1.250." in text


def test_metrics_over_steps_only_for_equal_settings(run):
    assert page(run).count("Over training") == 1
    different = [
        dataclasses.replace(one, settings={**one.settings, "seed": n}) for n, one in enumerate(run.evaluations)
    ]
    assert "Over training" not in page(dataclasses.replace(run, evaluations=different))


def test_an_empty_run_has_a_page_without_empty_sections():
    parsed = Page(page(Run("nothing")))
    assert not parsed.all("section")
    assert not parsed.all("table")
    assert [text for _, text in parsed.all("h1")] == ["nothing"]


def test_config_is_complete_and_says_what_was_changed(run):
    parsed = Page(page(run))
    fields = dict(zip(*[[text for _, text in parsed.all(tag)][-5:] for tag in ("dt", "dd")]))
    assert fields["seed"] == "0"
    assert fields["name"] == "digits"
    assert fields["flip"] == "True"
    assert parsed.all("span", class_="changed")[0][0]["title"] == "the config file says 3"


def test_every_metric_is_described_and_unknown_ones_come_last():
    assert all(metric.group in GROUPS and metric.meaning.endswith(".") for metric in METRICS.values())
    assert all(metric.reference in METRICS for metric in METRICS.values() if metric.reference)
    assert describe("fid_768").title == "FID-768"
    assert describe("fid_768").better == LOWER
    assert describe("tokenizer_rfid_192").group == "tokenizer"
    assert describe("kid_std_768").better == NEITHER
    assert describe("tokenizer_lpips_vgg").title == "LPIPS (VGG)"
    assert describe("codebook_usage") == METRICS["usage"]
    assert describe("fidelity").group == "other"  # begins with fid, and is none
    names = ["strange", "images_per_second_sampling", "fid_768", "fid", "tokenizer_psnr", "class_accuracy"]
    assert sorted(names, key=rank) == [
        "fid", "fid_768", "class_accuracy", "tokenizer_psnr", "images_per_second_sampling", "strange",
    ]  # fmt: skip
    assert headline(["tokenizer_psnr", "kid_std", "fid_768", "near_copy_share_real"]) == ["fid_768", "tokenizer_psnr"]


def test_panels_hold_training_and_heldout_and_every_other_scalar(run):
    text = training_curves("generator", run.metrics["generator"])
    titles = [text for _, text in Page(text).all("strong")]
    assert titles == ["Loss", "odd scalar", "Learning rate"]
    legends = [text for _, text in Page(text).all("div", class_="legend")]
    assert legends[0] == "training 0.0025held-out 2"
    assert training_curves("generator", []) == Html()


def paths(chart):
    return [attributes for attributes, _ in Page(chart).all("path", class_="line")]


def test_curve_lies_where_its_values_are():
    steps, values = np.array([0.0, 50.0, 100.0]), np.array([0.0, 1.0, 0.5])
    (line,) = paths(line_chart("t", [Series("a", steps, values)]))
    points = np.array([point.split(",") for point in line["d"].removeprefix("M").split("L")], float)
    x, y = points.T
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.11)
    np.testing.assert_allclose((y[0] - y[2]) * 2, y[0] - y[1], atol=0.21)
    assert y[1] < y[2] < y[0]  # upwards is up
    assert line["data-at"] == "0 50 100"
    assert line["data-value"] == "0 1 0.5"


@pytest.mark.parametrize(("values", "log"), [([1, 11], True), ([1, 9], False), ([0, 100], False), ([-1, 100], False)])
def test_scale_is_logarithmic_where_it_helps(values, log):
    chart = line_chart("t", [Series("a", np.array([1.0, 2.0]), np.array(values, np.float64))])
    assert ("log scale" in chart) == log


def test_gaps_are_not_drawn_over_and_lone_points_are_seen():
    nan = float("nan")
    (line,) = paths(chart := line_chart("t", [Series("a", np.arange(6.0), np.array([1, 2, nan, 3, nan, 4]))]))
    assert line["d"].count("M") == 3
    assert len(Page(chart).all("circle")) == 2
    assert "nan" not in line["d"]
    assert line_chart("t", [Series("a", np.arange(2.0), np.array([nan, nan]))]) == Html()


def test_long_curves_are_reduced_and_keep_their_range():
    steps = np.arange(10_000.0)
    values = np.where(steps == 5000, 9.0, 1.0)
    chart = line_chart("t", [Series("a", steps, values)], log=False)
    (line,) = paths(chart)
    assert len(line["data-at"].split()) == BINS
    assert max(map(float, line["data-value"].split())) < 2  # a mean
    (band,) = Page(chart).all("path", class_="band")
    highest = min(float(point.split(",")[1]) for point in band[0]["d"].strip("MZ").split("L"))
    assert highest < 25  # the spike reaches the top of the frame


def test_ticks_are_round_and_few():
    assert linear_ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert linear_ticks(3.0, 1900.0) == [500, 1000, 1500]
    assert log_ticks(0.011, 4.0) == pytest.approx([0.03, 0.1, 0.3, 1, 3])
    for low, high in ((1e-9, 1e9), (1.0, 12.0), (0.9, 1100.0)):
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
    assert [tick_label(v) for v in (0.0, 0.05, 1e-5, 950.0, 1500.0, 2e4, 2.5e6)] == [
        "0",
        "0.05",
        "1e-5",
        "950",
        "1.5k",
        "20k",
        "2.5M",
    ]
    axis = Axis(1.0, 100.0, 200.0, 0.0, log=True)
    np.testing.assert_allclose(axis(np.array([1.0, 10.0, 100.0])), [200, 100, 0])


def test_numbers_are_short():
    assert [number(v) for v in (3.0, 1314176.0, 0.031234, 2e-5, float("nan"))] == [
        "3",
        "1,314,176",
        "0.03123",
        "2e-5",
        "NaN",
    ]

"""The page: sound HTML that holds all it shows, escapes what is data, and marks the right figures."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from pages import Page
from PIL import Image

from evaluation.report.descriptions import GROUPS, HIGHER, LOWER, METRICS, NEITHER, describe, headline, rank
from evaluation.report.evaluations import Evaluation, measured
from evaluation.report.markup import Html, element, image, number, png_file, words
from evaluation.report.page import TILES, Run, Samples, page
from evaluation.report.tables import best, prose
from evaluation.report.training import training_curves

HOSTILE = "<script>alert('x')</script>&\"run\""


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
        samples=Samples(images[:300], labels[:300].astype(np.int32), "samples/x.npz",
                        {"step": 900, "sampler.guidance_scale": 2.0, "sampler.temperature": 1.0, "sampler.top_k": 0}, 10),
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
    images, labels = run.samples.images, run.samples.labels
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
        samples=dataclasses.replace(run.samples, source=HOSTILE, settings={"sampler.name": HOSTILE}),
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
    (_, number_), (_, null), (_, nan) = rows["Near copies"]
    assert [number_, null, nan] == ["25.0%", "–", "NaN"]
    notes = [text for _, text in parsed.all("p", class_="note")]
    assert notes == [
        "Measured: step 900.", "The best of a row is set bold.", "KID not measured: too few samples",
        "Near copies not measured: none",
    ]  # fmt: skip
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


def judged(name, fid, **settings):
    """An evaluation against 50,000 training images, or with other `settings` ("a__b" is a.b)."""
    known = {
        "step": 2400, "seed": 0, "sampler.name": "sequential", "sampler.guidance_scale": 2.0, "evaluation.samples": 5000,
        "reference.name": "train", "reference.count": 50_000, "reference.sha256": "0123456789abcdef" * 4,
        "data.name": "cifar10", "weights.generator": "fedcba9876543210",
    }  # fmt: skip
    return Evaluation(name, known | {key.replace("__", "."): value for key, value in settings.items()}, {"fid": fid})


def heads_and_marks(evaluations):
    """Heads of the columns, where the best FID stands, and the note about it."""
    parsed = Page(page(Run("r", evaluations=evaluations)))
    heads = [text for _, text in parsed.all("th", class_="number")]
    marked = [n for n, (attributes, _) in enumerate(rows_of(parsed)["FID↓"]) if "best" in attributes["class"]]
    return heads, marked, [text for _, text in parsed.all("p", class_="note")][1]


def test_columns_say_in_what_they_differ_and_checkpoints_and_samplers_are_compared():
    columns = [judged("a", 3.0), judged("b", 2.0, step=4800, sampler__guidance_scale=1.5, weights__generator="0" * 16)]
    columns += [dataclasses.replace(columns[1], name="c")]
    heads, marked, note = heads_and_marks(columns)
    assert heads == ["step 2,400guidance 2", "step 4,800guidance 1.5b", "step 4,800guidance 1.5c"]
    assert marked == [1, 2]
    assert note == "The best of a row is set bold."


def test_columns_of_other_references_are_not_compared():
    other = {"reference__name": "test", "reference__count": 10_000, "reference__sha256": "f" * 64}
    columns = [judged("a", 3.0), judged("b", 2.0, evaluation__samples=50_000, sampler__top_k=100, **other)]
    heads, marked, note = heads_and_marks(columns)
    assert heads == [  # the hash says no more than the name, and is left out
        "step 2,400top-k –5,000 samplesreference train50,000 reference images",
        "step 2,400top-k 10050,000 samplesreference test10,000 reference images",
    ]
    assert marked == []
    start = "No best is marked: the columns differ in number of samples and reference,"
    assert note == f"{start} so their numbers must not be compared."
    # One more of the first kind is compared with it, though the second kind's number is lower.
    _, marked, note = heads_and_marks([*columns, judged("c", 2.5, step=4800)])
    assert marked == [2]
    start = "Bold is the best among columns of equal number of samples and reference;"
    assert note == f"{start} the numbers of others must not be compared."


def test_hashes_in_heads_are_short():
    heads, marked, _ = heads_and_marks([judged("a", 3.0), judged("b", 2.0, reference__sha256="f" * 64)])
    assert heads == ["step 2,400reference sha256 01234567", "step 2,400reference sha256 ffffffff"]
    assert marked == []


def test_an_evaluation_says_what_it_measured():
    one = judged("a", 3.0, sampler__temperature=0.9, sampler__top_k=0, sampler__guidance_interval=[0.0, 1.0])
    assert measured(one.settings) == (
        "sequential, step 2,400, guidance 2, temperature 0.9, "
        "5,000 samples against cifar10:train (50,000 images, sha 01234567), seed 0"
    )
    tokenizer = {"step": 1600, "images.count": 2000, "images.sha256": "a9c04df9daccb179", "weights.inception": "f"}
    assert measured(tokenizer) == "tokenizer, step 1,600, 2,000 held-out images (sha a9c04df9)"
    statistics = {
        "evaluation.samples": 9,
        "reference.name": "x.npz",
        "reference.count": None,
        "reference.sha256": "e" * 64,
    }
    assert measured(statistics) == "9 samples against x.npz (sha eeeeeeee)"
    assert measured({}) == ""
    parsed = Page(page(Run("r", evaluations=[one])))
    assert f"Measured: {measured(one.settings)}." in [text for _, text in parsed.all("p", class_="note")]
    rows = rows_of(parsed)
    for name, value in one.settings.items():
        (attributes, text), = rows[name]  # fmt: skip
        assert words(value) in (text, attributes.get("title")), name


def test_classes_of_few_samples_flow_with_captions(digits):
    images = np.broadcast_to(digits[0][:1], (100, *digits[0].shape[1:]))
    labels = np.arange(0, 1000, 10, dtype=np.int32)
    parsed = Page(page(Run("r", samples=Samples(images, labels, "x.npz", {}, 1000))))
    assert [text for _, text in parsed.all("figcaption")] == [str(label) for label in labels]
    assert not parsed.all("div", class_="classes")
    (_, lead), = parsed.all("p", class_="lead")  # fmt: skip
    assert (
        lead
        == "Each over its class, not picked: the first of 100 in x.npz, 16 × 16 pixels. 100 of 1,000 classes sampled."
    )
    labels = np.repeat(labels[:50], 2)[::-1].copy()
    many = Samples(np.concatenate([images] * 3), np.concatenate([labels, labels + 1, labels + 2]), "x.npz", {}, 150)
    parsed = Page(page(Run("r", samples=many)))
    assert len(parsed.all("figcaption")) == TILES
    assert parsed.all("p", class_="lead")[0][1].endswith(". 50 of 150 classes shown.")


def test_samples_say_how_they_were_drawn_and_how_many_classes_there_are(run):
    many = dataclasses.replace(run.samples, classes=1000)
    lead = Page(page(dataclasses.replace(run, samples=many))).all("p", class_="lead")[0][1]
    assert lead == (
        "One class a row, not picked: the first of 300 in samples/x.npz, 16 × 16 pixels; "
        "step 900, guidance 2, temperature 1. 10 of 1,000 classes sampled."
    )


def test_commands_and_options_are_set_as_code():
    text = prose("no weights; `python -m x <a>` makes them, or give --config.evaluation.inception=FILE to it.")
    assert text == (
        "no weights; <code>python -m x &lt;a&gt;</code> makes them, or give "
        "<code>--config.evaluation.inception=FILE</code> to it."
    )


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
    assert describe("tokenizer_usage") == METRICS["usage"]
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


def test_numbers_are_short():
    assert [number(v) for v in (3.0, 1314176.0, 0.031234, 2e-5, float("nan"))] == [
        "3",
        "1,314,176",
        "0.03123",
        "2e-5",
        "NaN",
    ]

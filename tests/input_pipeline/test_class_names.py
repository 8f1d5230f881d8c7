import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from input_pipeline import class_names
from input_pipeline.class_names import class_id
from models.errors import UserError

LINES = Path(class_names.__file__).with_name("imagenet_classes.txt").read_text().splitlines()
WORDNET_IDS = [line.split(" ", 1)[0] for line in LINES]
NAMES = [line.split(" ", 1)[1].split(", ") for line in LINES]
AMBIGUOUS = (
    *("cardigan", "catamount", "crane", "crawfish", "crayfish", "gong", "grass snake", "harp", "horn", "maillot"),
    *("missile", "panda", "panther", "partridge", "polecat", "sand viper", "sus scrofa", "tub", "wagon"),
)


def test_the_ids_are_those_of_tfds():
    package = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    assert (package / "datasets/imagenet2012/labels.txt").read_text().split() == WORDNET_IDS
    assert len(WORDNET_IDS) == 1000
    assert sorted(set(WORDNET_IDS)) == WORDNET_IDS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tench", 0),
        ("goldfish", 1),
        ("golden retriever", 207),
        ("husky", 248),
        ("Siberian husky", 250),
        ("Cardigan Welsh corgi", 264),
        ("tabby", 281),
        ("tabby cat", 281),
        ("lion", 291),
        ("lesser panda", 387),
        ("red panda", 387),
        ("giant panda", 388),
        ("balloon", 417),
        ("tank suit", 639),
        ("nail", 677),
        ("projectile", 744),
        ("sunglass", 836),
        ("sunglasses", 837),
        ("volcano", 980),
        ("toilet tissue", 999),
        ("GOLDEN Retriever", 207),
        ("n02123045", 281),
        ("N02123045", 281),
    ],
)
def test_known_classes(name, expected):
    assert class_id(name) == expected


def test_every_name_finds_its_class_unless_others_bear_it():
    count = Counter(name.lower() for names in NAMES for name in names)
    assert {name for name in count if count[name] > 1} == set(AMBIGUOUS)
    for i, (wordnet_id, names) in enumerate(zip(WORDNET_IDS, NAMES)):
        assert class_id(wordnet_id) == i
        assert all(name == name.strip() != "" for name in names)
        assert {class_id(name) for name in names if name.lower() not in AMBIGUOUS} <= {i}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_name_lists_its_classes(name):
    with pytest.raises(UserError, match="names 2 ImageNet classes") as error:
        class_id(name)
    bearers = [i for i, names in enumerate(NAMES) if name in map(str.lower, names)]
    assert all(f"{i} ({WORDNET_IDS[i]} {NAMES[i][0]}" in str(error.value) for i in bearers)


def test_the_two_cranes():
    with pytest.raises(UserError, match=r": 134 \(n02012849 crane\), 517 \(n03126707 crane\)\.$"):
        class_id("Crane")


@pytest.mark.parametrize(("name", "near"), [("Golden Retreiver", "golden retriever"), ("n0212304", "n02123045")])
def test_an_unknown_name_is_told_the_nearest(name, near):
    with pytest.raises(UserError, match=f"did you mean '{near}'"):
        class_id(name)

import pytest
from flax import nnx

from models.errors import UserError, unknown
from models.registry import build


class Circle(nnx.Module):
    def __init__(self, *, radius: float, colour: str = "red", rngs: object):
        self.radius, self.colour, self.rngs = radius, colour, rngs


def square(*, side, scale):
    return side * scale


TABLE = {"circle": Circle, "square": square}


def test_a_section_builds_what_its_name_lists():
    assert build("shape", TABLE, {"name": "square", "side": 3}, scale=2) == 6
    circle = build("shape", TABLE, {"name": "circle", "radius": 1.5}, rngs=None)
    assert (type(circle), circle.radius, circle.colour) == (Circle, 1.5, "red")


def test_a_section_is_left_as_it_was():
    section = {"name": "square", "side": 3}
    build("shape", TABLE, section, scale=2)
    assert section == {"name": "square", "side": 3}


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"unknown shape 'circel'; did you mean 'circle'\?"):
        build("shape", TABLE, {"name": "circel"})


@pytest.mark.parametrize(
    ("section", "near"),
    [({"name": "circle", "radios": 1.0}, "radius"), ({"name": "circle", "color": "blue"}, "colour"),
     ({"name": "square", "sides": 1}, "side")],
)  # fmt: skip
def test_an_unknown_field_offers_the_nearest(section, near):
    field = next(key for key in section if key != "name")
    with pytest.raises(
        UserError, match=rf"shape '{section['name']}': unknown field '{field}'; did you mean '{near}'\?"
    ):
        build("shape", TABLE, section, rngs=None)


def test_what_the_caller_knows_is_no_field_of_the_config():
    with pytest.raises(UserError, match="unknown field 'rngs'"):
        build("shape", TABLE, {"name": "circle", "radius": 1.0, "rngs": 0}, rngs=None)


def test_a_name_like_no_other_lists_what_there_is():
    message = str(unknown("layout", "xyz", ["raster", "scales", "diagonals"]))
    assert message == "unknown layout 'xyz'; there is diagonals, raster, scales."

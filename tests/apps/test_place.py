import pytest
from feature_browser.shell.place import KEPT, SORTS, Place, numbers_of


def test_an_order_of_another_view_falls_back():
    assert Place.of({"view": "latents", "sort": "output"}).sort == "f1"
    assert Place.of({"view": "steering", "sort": "output"}).sort == "output"


@pytest.mark.parametrize("view", list(KEPT))
def test_a_part_of_a_table_survives_its_address_in_its_own_view_only(view: str):
    for part in KEPT[view]:
        place = Place(view=view, keep=part)
        assert Place.at(place.href) == place
    assert Place.of({"view": "known", "keep": KEPT[view][0]}).keep == ""


def test_every_view_with_orders_accepts_them():
    for view, sorts in SORTS.items():
        assert [Place.of({"view": view, "sort": sort}).sort for sort in sorts] == list(sorts)


@pytest.mark.parametrize("box", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,nan,0,1", "0,inf,0,1"])
def test_a_box_that_is_not_four_finite_numbers_is_none(box: str):
    assert numbers_of(box) is None
    assert Place.of({"view": "steering", "box": box}).box == ""


def test_a_box_is_left_right_bottom_and_top():
    assert numbers_of("0,0.5,-0.25,1") == (0.0, 0.5, -0.25, 1.0)


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("0", 1), ("-2", 1), ("x", 1), ("٣", 3), ("9" * 400, 1)]
)
def test_a_page_is_a_number_of_at_least_one(text: str, number: int):
    assert Place(page=text).page_number == number

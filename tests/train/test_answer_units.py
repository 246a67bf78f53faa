"""Words and signs beside a number: units of a closed list, and everything else, which is no unit."""

from __future__ import annotations

import pytest

from tests.train.grading import boxed

UNITS = [
    # written with a number 9.8, equal to it without
    "9.8 cm", r"9.8\text{ cm}", r"9.8\ \mathrm{cm}^2", "9.8 square meters", "9.8 sq ft", r"9.8\ \mathrm{m/s^2}", "9.8 m/s^2", r"9.8\text{ m/s²}", r"9.8\,\frac{\text{m}}{\text{s}^2}", r"9.8\,\mathrm{m\,s^{-2}}", r"9.8\text{ m}/\text{s}^2",
    r"9.8\ \Omega", r"9.8\,\mu\text{m}", "9.8 µm", r"9.8 \text{ kg m}^2/\text{s}", "€9.8", "9.8€", "£9.8", "$9.8", r"\$9.8", "US$9.8", r"\text{Rs. }9.8", "Rs 9.8", "9.8 dollars", "9.8 dollars per hour", "9.8 dollars a day", r"9.8^\circ", "9.8 degrees",
    r"9.8^\circ C", r"9.8^\circ\text{F}", "9.8 degrees Celsius", "9.8 mph", "9.8 miles per hour", "9.8 eggs", "9.8 brown eggs", "9.8 different ways", r"9.8 \text{ (dollars)}", "9.8 hours in total", "9.8 pm", "9.8 p.m.", "9.8 square units", "9.8 eggs per day",
]  # fmt: skip
SAME = [
    ("9.8 m", "9.8"), ("5 times", "5"), ("5 m/s", r"5 \text{ m/s}"), (r"5\,\mathrm{m\,s^{-1}}", "5 m/s"), ("100 km/h", "100 km/hr"), ("7 mph", "7 miles per hour"), ("5 cm squared", r"5\text{ cm}^2"), ("5 square centimeters", r"5\text{ cm}^2"), ("25 degrees Celsius", r"25^\circ C"),
    ("5 am", "5 a.m."), ("5 dozen", "60"), ("5 dozen eggs", "60 eggs"), ("2.5 thousand dollars", "2500"), (r"12\pi\text{ cm}^3", r"12\pi"), (r"2\sqrt{3}\ \mathrm{m}", r"2\sqrt3"), ("5", r"5\text{ blorps}"), ("5 blorps", "5 blorps"), ("9 chickens and 10 rabbits", "9, 10"),
    (r"9\text{ chickens and }10\text{ rabbits}", "9, 10"), (r"x \text{ is even}", r"x\text{ is even}"), ("5 inches", "5 in"), ("5 kWh", "5 kWh"), ("5 square units", r"5\text{ units}^2"), ("5 units", "5 cm"), ("5 square units", r"5\text{ cm}^2"), (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
]  # fmt: skip
DIFFERENT = [
    # (answer, gold answer)
    ("5 tenths", "5"), ("5 hundredths", "5"), ("5 thirds", "5"), ("5 halves", "5"), ("3 quarters", "3"), ("5 dozen", "5"), ("5 million", "5"), ("5 never", "5"), ("5 false", "5"), (r"5\text{ wrong}", "5"), (r"5\text{ (incorrect)}", "5"), (r"5 \text{ not}", "5"),
    (r"5\text{ is wrong}", "5"), (r"5\text{ or more}", "5"), (r"5 \text{ squared}", "5"), ("5 blorps", "5"), ("5 xyz", "5"), ("5th", "5"), ("5^{th}", "5"), ("5 am", "5 pm"), (r"25^\circ C", r"25^\circ F"), ("5 cm", "5 m"), ("5 cm", r"5\text{ cm}^2"), ("5 m/s", "5 m/s^2"),
    ("5 m/s", "5 km/s"), ("5 mW", "5 MW"), ("5 dollars", "5 cents"), ("5 euros", "5 dollars"), ("5 hours", "5 minutes"), ("5 mph", "5 km/h"), (r"5\text{ units}^2", r"5\text{ units}^3"), ("5 square units", "5 cubic units"), ("5 units", "5 square units"), (r"x \text{ is even}", r"x \text{ is odd}"), (r"n\text{ odd}", r"n\text{ even}"), ("x", r"x \text{ is odd}"), (r"x\text{ is odd}", "x"),
    ("5x", "5"), ("5 t", "5"), ("5m", "5"), ("60 eggs", "5 dozen eggs and 1"), (r"5\%", "5"), ("5 feet and 6 inches", "5"), (r"5\text{ or }6\text{ eggs}", "5"), ("5 to 6", "5"), ("half", "5"),
]  # fmt: skip


@pytest.mark.parametrize("answer", UNITS)
def test_a_unit_leaves_the_number(answer: str) -> None:
    assert boxed(answer, "9.8") == boxed("9.8", answer) == boxed(answer, answer) == "correct"
    assert boxed(answer.replace("9.8", "9.9"), "9.8") == boxed(answer, "9.9") == "wrong"


@pytest.mark.parametrize("answer, gold", SAME, ids=[f"{a} = {g}" for a, g in SAME])
def test_the_same_quantity(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == "correct"


@pytest.mark.parametrize("answer, gold", DIFFERENT, ids=[f"{a} / {g}" for a, g in DIFFERENT])
def test_other_quantities_and_words_that_are_no_unit(answer: str, gold: str) -> None:
    assert boxed(answer, gold) != "correct"

"""Numbers as people write them, by their value."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_recipes.plugin import Sample
from posttrain_recipes.rewards.numeric import Numeric
from posttrain_recipes.training.text.answer_extraction import equal, extract, final_number
from posttrain_recipes.training.text.numbers import last_number, read_number

HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("-7", -7), ("+7", 7), ("\u22127", -7), ("1,000", 1000),
        ("12,345,678.5", Fraction(24691357, 2)),
        (".5", HALF), ("-.5", -HALF), ("0.50", HALF), ("5.", 5), ("007", 7),
        ("1e-3", Fraction(1, 1000)),
        ("2.5E+2", 250), ("3 x 10^4", 30000), (r"3 \times 10^{4}", 30000),
        ("3×10^-2", Fraction(3, 100)),
        ("1/2", HALF), ("-1/2", -HALF), ("2 1/2", Fraction(5, 2)), (r"\frac{1}{2}", HALF),
        (r"-\frac{1}{2}", -HALF), (r"\dfrac{ 3 }{ 4 }", Fraction(3, 4)), (r"\frac12", HALF),
        (r"2\frac{1}{2}", Fraction(5, 2)), (r"\frac{1.5}{3}", HALF), (r"$\frac{1}{2}$", HALF),
        (r"\(\frac{1}{2}\)", HALF), ("$3.50", Fraction(7, 2)), ("-$3.50", -Fraction(7, 2)),
        ("3.50 €", Fraction(7, 2)),
        (r"\$5", 5), ("12 km", 12), ("12km/h", 12), (r"12\text{ cm}", 12), ("9 m^2", 9),
        ("90°", 90),
        (r"90^\circ", 90), ("5 apples", 5), ("**42**", 42), (r"1{,}000", 1000), (r"1\,000", 1000),
        (r"10,\!000", 10000), ("1 234 567", 1234567), ("1\u202f234", 1234), ("1'234", 1234),
        ("½", HALF), ("1½", Fraction(3, 2)), ("3⁄4", Fraction(3, 4)), ("3 / 4", Fraction(3, 4)),
        ("10^3", 1000), ("2^{10}", 1024), ("1 234 km", 1234),
        ("1.5 million", 1500000), (r"2\text{ thousand}", 2000), ("$1 million", 1000000),
        ("minus 5", -5), ("negative $5", -5), (r"\frac{1}{-2}", -HALF), (r"{1 \over 2}", HALF),
    ],
)  # fmt: skip
def test_a_number_is_read_by_its_value(text: str, value: Fraction | int | None) -> None:
    found = read_number(text)
    assert (None if found is None else found.value) == value
    assert found is None or not found.percent


@pytest.mark.parametrize(
    "text",
     ["", "none", "x = 5", "3 and 4", "18 - 5 = 13", "1, 2", r"\sqrt{2}", r"\pi", "1/0",
     "1 000 000 x 2", "5;6", "5 + 6"],
)  # fmt: skip
def test_what_is_no_single_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("it is 1/2", "1/2"), ("18 - 5 = 13", "13"), ("7-3", "3"), ("so -3", "-3"),
        ("about .5 of it.", ".5"),
        ("(3,5)", "5"), ("1,000 people", "1,000"), ("5 to 1e-3", "1e-3"),
        (r"is \frac{3}{4}.", "3/4"),
        ("50%", "50%"), ("no number", None), ("on 2020-01-02", "02"),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, last: str | None) -> None:
    assert last_number(text) == last


def score(reply: str, answer: str, **options: object) -> float | None:
    (found,) = Numeric(Numeric.Config(**options)).score([Sample((), reply, answer)])  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        ("2", "1/2", 0.0), ("0.5", "1/2", 1.0), ("1/2", "0.5", 1.0), ("so it is 1/2.", "1/2", 1.0),
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0), ("0.5", r"\frac{1}{2}", 1.0),
        ("2", r"\frac{1}{2}", 0.0),
        ("0.001", "1e-3", 1.0), ("3", "1e-3", 0.0), ("5", ".5", 0.0), ("0.5", ".5", 1.0),
        ("50%", "0.5", 1.0), ("50", "50%", 1.0), ("0.5", "50%", 1.0), ("5", "50%", 0.0),
        ("50", "0.5", 0.0),
        ("1000", "1,000", 1.0), ("$1,000.00", "1000", 1.0), ("12 km", "12", 1.0),
        ("12", "12 km", 1.0),
        ("-3", "3", 0.0), ("\u22123", "-3", 1.0), ("2 1/2", "2.5", 1.0),
        (r"x = \boxed{7}", "7", 1.0),
        ("#### 42\nThat is all, in 3 steps.", "42", 1.0), ("it has no number", "42", 0.0),
        ("42", "no number", None), ("13", "18 - 5 = 13", 1.0), ("3 x 10^4", "30000", 1.0),
        ("3", "3 and 4", 0.0), ("#### 41 42x", "42", 0.0),
        # What models write in the wild.
        (r"So \boxed{\text{42}}.", "42", 1.0), (r"\boxed{\text{42 apples}}", "42", 1.0),
        (r"\boxed{\frac{\text{3}}{4}}", "0.75", 1.0), (r"\boxed{{42}}", "42", 1.0),
        (r"\boxed{\dfrac{3}{4}}, in 2 steps", "3/4", 1.0), (r"\boxed{-\frac{7}{2}}", "-3.5", 1.0),
        (r"\boxed{\$1{,}234.50}", "1234.5", 1.0), (r"\boxed{1\,234}", "1234", 1.0),
        (r"\boxed{1 234}", "1234", 1.0), (r"\boxed{60 \text{ cm}}", "60", 1.0),
        (r"\boxed{50\%}", "50", 1.0), (r"\boxed{42 \text{ m}^2}", "42", 1.0),
        (r"\boxed{41}, no: \boxed{42}", "42", 1.0), ("18 apples", "18", 1.0),
        ("It goes at 5 km/h.", "5", 1.0), ("50 percent", "50%", 1.0), ("50 per cent", "0.5", 1.0),
        ("1 1/2", "1.5", 1.0), ("1.5e3", "1500", 1.0), ("It is **42**.", "42", 1.0),
        ("The answer is 42.", "42", 1.0), ("The answer is 42. I used 3 steps.", "42", 1.0),
        ("Final answer: 42 (in 3 steps)", "42", 1.0), ("**Answer:** 18\n2 checks done", "18", 1.0),
        ("The answer is: **$18** per day, over 7 days", "18", 1.0),
        ("The final answer is $42$. I hope it is correct, 100%.", "42", 1.0),
        ("The answer is 16 - 3 = 13. It took 2 steps.", "13", 1.0),
        ("The answer is not 5 but 7.", "7", 1.0), ("The answer is clear. So 5 + 2 = 7", "7", 1.0),
        ("The answer is 3.5 of 10.", "3.5", 1.0), ("the answer is 1 234", "1234", 1.0),
        ("<answer>42</answer> I checked 3 times", "42", 1.0),
        (r"<answer>\boxed{42}</answer>", "42", 1.0), ("<answer>none</answer> 42", "42", 0.0),
        ("rows 5 100", "100", 1.0), ("in 2020 300 people", "300", 1.0),
    ],
)  # fmt: skip
def test_a_reply_is_right_by_value(reply: str, answer: str, expected: float | None) -> None:
    assert score(reply, answer) == expected


def test_tolerances_are_of_the_reference() -> None:
    assert score("0.333", "1/3") == 0.0
    assert score("0.333", "1/3", relative=0.01) == 1.0
    assert score("7.4", "7", absolute=0.5) == 1.0
    assert score("7.6", "7", absolute=0.5) == 0.0


def test_exact_match_finds_whole_numbers() -> None:
    """Of a reply the same number is found; whether it is the reference is decided by words."""
    assert extract("so it is 1/2.", "number") == "1/2"
    assert extract("about 50%", "number") == "50"
    assert equal(extract("it is .5", "number"), "0.5")
    assert not equal(extract("it is 1/2", "number"), "2")


@given(st.fractions(max_denominator=10**6), st.booleans())
def test_what_is_written_is_what_is_read(value: Fraction, latex: bool) -> None:
    sign, top = ("-" if value < 0 else ""), abs(value.numerator)
    text = (
        rf"{sign}\frac{{{top}}}{{{value.denominator}}}"
        if latex
        else f"{sign}{top}/{value.denominator}"
    )
    found = read_number(text)
    assert found is not None
    assert found.value == value


@given(st.text(max_size=40))
def test_anything_can_be_read(text: str) -> None:
    read_number(text)
    last_number(text)
    score(text, text)


def test_algebra_is_an_option() -> None:
    pytest.importorskip("math_verify", reason="math-verify is an extra")
    assert score(r"$\frac{\sqrt{2}}{2}$", r"$\sqrt{2}/2$", parser="math_verify") == 1.0
    assert score("3", "4", parser="math_verify") == 0.0


def test_an_algebra_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain_recipes.rewards.numeric.find_spec", lambda name: None)
    ((key, why),) = Numeric(Numeric.Config(parser="math_verify")).problems()
    assert key == "parser"
    assert "pip install 'posttrain-recipes[math]'" in why
    assert list(Numeric(Numeric.Config()).problems()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"The area is $12\pi$.", None), (r"so it is 3\sqrt{2}", None), (r"\boxed{\sqrt{2}}", None),
        (r"\boxed{12\pi}", None), (r"\boxed{e^{2}}", None), (r"\boxed{5!}", None),
        (r"The answer is \sqrt{2}", None), (r"\boxed{x = 5}", 5), ("The area is 12 cm^2.", 12),
        ("10 minus 5 is 5", 5), ("It is 5!", 5), ("half of 10^3 is 500", 500),
    ],
)  # fmt: skip
def test_a_part_of_an_expression_is_not_its_number(text: str, value: int | None) -> None:
    found = final_number(text)
    assert (None if found is None else found.value) == value

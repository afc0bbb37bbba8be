"""The answer within a text: equal answers are equal strings, whatever stands around them."""

import json
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.answers.extracting import extract

WAYS = ("auto", "number", "letter", "boxed", "code", "json", "line", "text")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 3 * 6 = 18 eggs.\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("The answer is $1,234.50.", "1234.5"),
        ("So 1234.5 it is", "1234.5"),
        ("**Answer:** 18", "18"),
        ("Answer:\n\n18 dollars", "18"),
        ("The final answer to this problem is 3 + 4 = 7. I checked it 2 times.", "7"),
        ("The answer is 5. No, wait. The answer is 6.", "6"),
        (r"thus $\boxed{18}$ of the 20", "18"),
        (r"\boxed{\frac{3}{6}}", "0.5"),
        (r"\boxed{-\dfrac{4}{6}}", "-2/3"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"12{,}345 \$", "12345"),
        ("10 - 3", "3"),
        ("it is -5", "-5"),
        ("it is −5", "-5"),
        ("-$5 or $-5", "-5"),
        ("1/2", "0.5"),
        ("4/6.", "2/3"),
        ("1.5/2", "0.75"),
        ("1e-3", "0.001"),
        ("2.50E2", "250"),
        (".50", "0.5"),
        ("007", "7"),
        ("-0.00", "0"),
        ("50%", "50"),
        ("a1 b2", None),
        ("1.2.3", "1.2"),
        (
            "12345678901234567890.123456789012345678901",
            "12345678901234567890.123456789012345678901",
        ),
        ("none", None),
        ("", None),
    ],
)
def test_numbers(text, answer):
    assert extract(text, "number") == answer


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.booleans())
def test_a_number_loses_no_digit(value, grouped):
    written = f"{value:,f}" if grouped else f"{value:f}"
    found = extract(f"The answer is {written}.", "number")
    assert found is not None and Fraction(found) == Fraction(value)
    assert found == extract(f"#### {Decimal(found):f}", "number")


@given(st.integers(-9999, 9999), st.integers(1, 9999))
def test_a_fraction_and_its_decimal_are_one_answer(over, under):
    found = extract(rf"\boxed{{\frac{{{over}}}{{{under}}}}}", "number")
    assert found is not None and Fraction(found) == Fraction(over, under)
    assert found == extract(found, "number")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (b).", "B"),
        ("The correct answer is D", "D"),
        ("Option C is correct", "C"),
        ("Answer: A because it is a dog", "A"),
        ("B) since 3 > 2", "B"),
        ("c", "C"),
        (r"\boxed{\text{(E)}}", "E"),
        ("(A) is wrong, so it must be (C)", "C"),
        ("Let us see.\n\nA.", "A"),
        ("#### B", "B"),
        ("A dog is an animal", None),
        ("no idea", None),
    ],
)
def test_letters(text, answer):
    assert extract(text, "letter") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I count 3 and 4.\n#### 7 apples", "7"),
        ("The answer is Paris.", "paris"),
        ("The answer is (b), as 3 > 2.", "B"),
        ("The answer is B because of 3", "B"),
        ("The answer is a dog", "a dog"),
        ("A) 12", "A"),
        ("Paris.\n", "paris"),
        ("it takes 4 days", "4"),
        ('{"b": 1.50, "a": [1e2, true, null]}', '{"a":[100,true,null],"b":1.5}'),
        ('```json\n{"a": 1}\n```', '{"a":1}'),
        ("Here:\n```python\nx = 1  \n\n```\nIt is 5.", "x = 1"),
        ("  \n", None),
    ],
)
def test_by_what_there_is(text, answer):
    assert extract(text) == answer


def test_code_is_the_longest_block_or_all_of_it():
    some = "~~~\na\n~~~\nand\n```py\ndef f():\n    return '```'\n```\n"
    assert extract(some, "code") == "def f():\n    return '```'"
    assert extract("```\nx = 1\ny = 2", "code") == "x = 1\ny = 2"
    assert extract("\nx = 1 \n", "code") == "x = 1"


def test_json_is_the_longest_object_or_array():
    assert extract('see [1] and {"b": 2, "a": "x"} {', "json") == '{"a":"x","b":2}'
    assert extract("{'a': 1}", "json") is None
    assert extract('[1e9999, 1.0, "1.0", NaN]', "json") == '[1e9999,1,"1.0",NaN]'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).filter(lambda value: isinstance(value, list | dict))
)
def test_json_is_the_same_however_it_is_written(value):
    wide = extract(json.dumps(value, indent=3, ensure_ascii=False), "json")
    assert wide == extract(f"It is {json.dumps(value)}", "json")
    assert wide is not None and json.loads(wide) == value


def test_lines_and_texts_do_without_case_and_spaces():
    assert extract("First.\n  The **End**!\n\n", "line") == "the **end"
    assert extract(" One\n two. ", "text") == "one two"


@pytest.mark.parametrize("how", WAYS)
@given(
    text=st.text(st.sampled_from("0123456789.,-/$e{}[]()`\\boxed answer is:#AB\n\"' "), max_size=80)
)
def test_any_text_has_an_answer_or_none(how, text):
    found = extract(text, how)
    assert found is None or found


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "[",
        "{",
        "answer is ",
        "\\boxed{",
        "```\n",
        "1,234,",
        "(",
        "-",
        "$",
        "answer a",
        "1/",
        ".1",
    ],
)
def test_a_long_text_takes_no_longer_than_it_must(how, piece):
    begun = time.process_time()
    extract(piece * 20_000, how)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "text", [("\\boxed{1" + " " * 1985 + "#}") * 64, "1.5e-999/7 " * 1000], ids=["boxes", "powers"]
)
def test_nor_do_boxes_of_spaces_and_numbers_of_many_digits(text):
    begun = time.process_time()
    extract(text)
    assert time.process_time() - begun < 0.3

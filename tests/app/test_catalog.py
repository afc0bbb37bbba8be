"""farthing.toml: what is in it, exact money, and errors that name file, table and key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app.catalog import PICO, Catalog, GpuSeconds, Price, read, seconds
from app.errors import ConfigError, UnknownModel
from app.sandbox import Limits
from app.settings import DEFAULT_CONFIG
from app.types import Usage
from tests.app.test_confidence import calibration

MODEL = """
[models.large]
engine = "embedded"
weights = "weights/large.gguf"
family = "f"
price = { input = 0.04, cached_input = 0.004, output = 0.20 }
aliases = ["big"]
"""
PRESET = """
[presets.cheap]
policy = "entropy_switch"
raise_at = 2.5
"""


def catalog(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return read(path)


def price(tmp_path: Path, amount: str) -> int:
    text = MODEL.replace("input = 0.04, cached_input = 0.004", f"input = {amount}")
    return catalog(tmp_path, text).models["large"].price.input


def test_the_default_fleet_is_a_model_in_two_precisions_a_draft_and_presets() -> None:
    fleet = read(DEFAULT_CONFIG)
    assert {name: card.precision for name, card in fleet.models.items()} == {
        "smollm2-135m": "fp32",
        "smollm2-135m-int8": "int8",
        "smollm2-tiny": "int8",
    }
    wheels = {card.sha256 for card in fleet.models.values() if not card.base}
    assert len(wheels) == 1
    assert fleet.models["smollm2-tiny"].base == "smollm2-135m"
    assert [card.name for card in fleet.family("smollm2-135m")] == [
        "smollm2-tiny",
        "smollm2-135m-int8",
        "smollm2-135m",
    ]
    assert "auto" in fleet.offered  # there is a profile
    assert fleet.presets["economy"].policy == "entropy_switch"
    assert fleet.presets["economy"].options["small"] == "smollm2-tiny"
    swift = fleet.presets["swift"]
    assert (swift.policy, swift.options["draft"]) == ("speculative", "smollm2-tiny")
    assert all(card.price.guess < card.price.output for card in fleet.models.values())
    sure = {name: card.confidence for name, card in fleet.models.items() if card.confidence}
    assert {name: known.model for name, known in sure.items()} == {
        name: name for name in ("smollm2-135m-int8", "smollm2-tiny")
    }


def test_a_model_is_found_by_its_name_and_its_alias(tmp_path: Path) -> None:
    fleet = catalog(tmp_path, MODEL + PRESET)
    assert fleet.model("big") is fleet.model("large")
    with pytest.raises(UnknownModel, match="'small' does not exist; there are: large, cheap"):
        fleet.model("small")


@pytest.mark.parametrize(
    ("amount", "pico"),
    [
        ("0", 0),
        ("1", 10**6),
        ("0.04", 40_000),
        ("0.1", 100_000),  # no float is 0.1; 0.1 * 1e6 of a float need not be 100000
        ("0.000001", 1),
        ("0.000003", 3),
        ("1234.567891", 1_234_567_891),
        ("1_000_000", PICO),
    ],
)
def test_a_price_is_exact(tmp_path: Path, amount: str, pico: int) -> None:
    assert price(tmp_path, amount) == pico


@pytest.mark.parametrize(
    "amount",
    ["0.0000001", "1.0000001", "-0.1", "nan", "inf", "1e400", "true", '"0.1"', "1_000_001"],
)
def test_a_price_that_would_be_rounded_is_refused(tmp_path: Path, amount: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet\.toml: \[models\.large\]: price\.input: "):
        price(tmp_path, amount)


def test_a_cost_is_the_sum_of_its_tokens() -> None:
    price = Price(input=0.04, cached_input=0.004, output=0.2)
    assert (
        price.of(Usage(prompt=10, cached=4, completion=3)) == 6 * 40_000 + 4 * 4_000 + 3 * 200_000
    )
    assert Price(input=0.04, output=0.2).of(Usage(prompt=10, cached=4)) == 10 * 40_000


def test_a_guess_that_stays_costs_what_a_guess_costs_and_no_more() -> None:
    price = Price(input=0.04, output=0.2, drafted=0.03)
    used = Usage(prompt=10, completion=7, drafted=8, accepted=5, passes=2)
    assert price.of(used) == 10 * 40_000 + 2 * 200_000 + 8 * 30_000
    assert price.written(4) == 200_000 + 4 * 30_000
    assert Price(input=0.04, output=0.2).guess == 40_000


def test_what_an_amount_buys_when_all_that_is_guessed_is_in_vain() -> None:
    price = Price(input=1, output=2, drafted=0.5)
    assert [price.buys(amount * 10**6, 4, longest=4) for amount in (3, 4, 7, 8, 24)] == [
        *(0, 0, 0, 1, 5),
    ]
    assert price.buys(24 * 10**6, 4) == 10
    assert Price(input=1, output=0).buys(10**6, 1) == sys.maxsize


def test_cached_input_is_not_dearer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"price\.cached_input: .*uncached"):
        catalog(tmp_path, MODEL.replace("0.004", "0.05"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "[models]: at least one model is needed"),
        ("models = 1", "[models]: must be a table of tables"),
        ("[models]\nlarge = 1", "[models.large]: must be a table"),
        ("[servers]\n" + MODEL, "[servers]: unknown table"),
        (MODEL + 'colour = "red"', "[models.large]: colour: "),
        (MODEL.replace('family = "f"', ""), "[models.large]: family: "),
        (MODEL.replace('"embedded"', '"magic"'), "[models.large]: engine: "),
        (MODEL.replace(", output = 0.20", ""), "[models.large]: price.output: "),
        (MODEL + 'name = "other"', "[models.large]: name: "),
        (MODEL + 'precision = "fp4"', "[models.large]: precision: "),
        (MODEL + 'sha256 = "12"', "[models.large]: sha256: "),
        (MODEL.replace("weights/large.gguf", "pypi:package/member"), "[models.large]: weights: "),
        (MODEL.replace("[models.large]", '[models."a b"]'), "[models.a b]: name: "),
        (MODEL.replace('"big"', '"large"'), "[models.large]: aliases: 'large' is already"),
        (MODEL.replace('"big"', '"auto"'), "[models.large]: aliases: 'auto' is already"),
        (MODEL + PRESET.replace("cheap", "big"), "[presets.big]: 'big' is already"),
        (MODEL + PRESET.replace('policy = "entropy_switch"', ""), "[presets.cheap]: policy: "),
        (MODEL + "[models.large]", "not valid TOML: "),
        (MODEL + "context = -1", "[models.large]: context: "),
        (MODEL + "throughput = { 0 = 5 }", "[models.large]: throughput.0"),
        (MODEL + "throughput = { two = 5 }", "[models.large]: throughput.two"),
        (MODEL + "throughput = { 2 = 0 }", "[models.large]: throughput.2"),
        (MODEL + "throughput = { 2 = inf }", "[models.large]: throughput.2"),
    ],
)
def test_an_error_names_file_table_and_key(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as raised:
        catalog(tmp_path, text)
    assert raised.value.message.startswith(f"{tmp_path / 'fleet.toml'}: {place}")


def test_throughput_is_by_calls_that_run(tmp_path: Path) -> None:
    found = catalog(tmp_path, MODEL + "throughput = { 1 = 9, 8 = 40.5 }").models["large"]
    assert found.throughput == {1: 9.0, 8: 40.5}
    assert catalog(tmp_path, MODEL).models["large"].throughput == {}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        read(tmp_path / "missing.toml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"fleet\.toml: not valid TOML"):
        read(tmp_path / "fleet.toml")


DRAFT = """
[models.small]
engine = "embedded"
weights = "runs/small/draft"
base = "large"
family = "f"
price = { input = 0.01, output = 0.02 }
"""


def test_a_draft_names_the_model_that_it_shares(tmp_path: Path) -> None:
    assert catalog(tmp_path, DRAFT + MODEL).models["small"].base == "large"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DRAFT, r"\[models.small\]: base: 'large' is no embedded model with weights of its own"),
        (DRAFT.replace('"large"', '"small"'), "base: 'small' is no embedded model"),
        (DRAFT.replace('"f"', '"g"') + MODEL, r"family: 'g', but its base large is of 'f'"),
        (
            DRAFT + MODEL.replace("[models.large]", '[models.large]\nbase = "small"'),
            "is no embedded model with weights of its own",
        ),
        (
            '[models.a]\nengine = "vllm"\nurls = ["http://h"]\nbase = "large"\nfamily = "f"\n'
            "price = { input = 1, output = 1 }" + MODEL,
            "base is for embedded models",
        ),
        (
            '[models.a]\nengine = "vllm"\nurls = ["http://h"]\nacceptance_head = "head"\n'
            'family = "f"\nprice = { input = 1, output = 1 }' + MODEL,
            "acceptance_head is for embedded models",
        ),
    ],
)
def test_a_base_must_be_one(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        catalog(tmp_path, text)


def test_a_predicted_token_has_a_price_of_its_own_and_no_dearer_one(tmp_path: Path) -> None:
    used = Usage(prompt=10, cached=3, predicted=5, completion=1)
    price = Price(input=0.04, cached_input=0.01, output=0.2, predicted=0.02)
    assert price.of(used) == 2 * 40_000 + 3 * 10_000 + 5 * 20_000 + 200_000
    plain = Price(input=0.04, cached_input=0.01, output=0.2)
    assert plain.of(used) == 7 * 40_000 + 3 * 10_000 + 200_000
    with pytest.raises(ConfigError, match=r"price\.predicted: .*uncached"):
        catalog(tmp_path, MODEL.replace("0.004", "0.004, predicted = 0.05"))


@pytest.mark.parametrize(
    ("model", "fine"),
    [
        ('engine = "embedded"\nweights = "x"\nembeds = "last"', True),
        ('engine = "embedded"\nweights = "x"\nembeds = "only"', False),
        ('engine = "vllm"\nurls = ["http://a"]\nembeds = "only"', True),
        ('engine = "vllm"\nurls = ["http://a"]\nembeds = "mean"', False),
    ],
)
def test_who_embeds_says_how(tmp_path: Path, model: str, fine: bool) -> None:
    path = tmp_path / "farthing.toml"
    price = "price = { input = 1, output = 1 }"
    path.write_text(f'[models.m]\n{model}\nfamily = "f"\n{price}\n')
    if fine:
        assert read(path).models["m"].embeds
    else:
        with pytest.raises(ConfigError, match="embeds"):
            read(path)


HARDWARE = MODEL.replace(
    "price = { input = 0.04, cached_input = 0.004, output = 0.20 }",
    "usd_per_hour = 2.5\ngpu_seconds = { input = 0.5, cached_input = 0.004, output = 300 }",
)


def test_a_model_says_what_its_tokens_take_of_accelerators(tmp_path: Path) -> None:
    taken = "gpu_seconds = { input = 0.5, cached_input = 0.25, output = 300, drafted = 1 }\n"
    fleet = catalog(tmp_path, MODEL + taken + DRAFT)
    (known,) = fleet.gpu_seconds().items()
    assert known == ("large", fleet.models["large"].gpu_seconds)
    used = Usage(prompt=10, cached=4, completion=7, drafted=8, accepted=5)
    took = 6 * 500_000 + 4 * 250_000 + 2 * 300_000_000 + 8 * 1_000_000  # 1e-12 s
    assert known[1].of(used) == took
    assert known[1].microseconds(used) == 612
    assert fleet.models["large"].price.input == 40_000


def test_microseconds_are_rounded_up() -> None:
    taken = GpuSeconds(input=0.000001, output=1)
    assert [taken.microseconds(Usage(prompt=n)) for n in (0, 1, 10**6, 10**6 + 1)] == [0, 1, 1, 2]
    assert taken.microseconds(Usage(completion=3)) == 3
    assert [seconds(us) for us in (0, 1, 2_500_000)] == ["0", "0.000001", "2.5"]


def test_a_price_by_the_hour_is_rounded_up_to_1e_12_usd(tmp_path: Path) -> None:
    price = catalog(tmp_path, HARDWARE).models["large"].price
    # 500,000e-12 s at 2.5 USD in 3600 s are 347.2e-12 USD; 4,000e-12 s are 2.8e-12 USD.
    assert price == Price(
        input=0.000348, cached_input=0.000003, output=0.208334, drafted=0.000348, predicted=0.000348
    )
    exact = HARDWARE.replace("usd_per_hour = 2.5", "usd_per_hour = 3.6")
    assert catalog(tmp_path, exact).models["large"].price == Price(
        input=0.0005, cached_input=0.000004, output=0.3, drafted=0.0005, predicted=0.0005
    )
    free = HARDWARE.replace("usd_per_hour = 2.5", "usd_per_hour = 0")
    assert catalog(tmp_path, free).models["large"].price.output == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HARDWARE.replace("usd_per_hour = 2.5", ""), "price: .*is needed.* or usd_per_hour with"),
        (HARDWARE + "price = { input = 1, output = 1 }", "price: .*beside usd_per_hour.*take out"),
        (MODEL + "usd_per_hour = 2.5", "usd_per_hour: .*needs gpu_seconds"),
        (HARDWARE.replace("2.5", "-1"), "usd_per_hour: .*0 to 1,000,000 USD per hour"),
        (HARDWARE.replace("2.5", "true"), "usd_per_hour: .*number of USD per hour"),
        (HARDWARE.replace("2.5", "nan"), "usd_per_hour: .*0 to 1,000,000"),
        (
            HARDWARE.replace("2.5", "1_000_000").replace("= 300", "= 100_000_000"),
            "price: .*usd_per_hour makes it more than 1,000,000 USD per million tokens",
        ),
        (
            HARDWARE.replace("= 300", "= 0.0000001"),
            r"gpu_seconds\.output: .*100,000,000 accelerator-seconds per million tokens",
        ),
        (HARDWARE.replace("= 300", '= "1"'), r"gpu_seconds\.output: .*number of accelerator-sec"),
        (HARDWARE.replace("0.004", "0.6"), r"gpu_seconds\.cached_input: .*uncached input"),
        (HARDWARE.replace("0.004", "0.4, predicted = 1"), r"gpu_seconds\.predicted: .*uncached"),
        (HARDWARE.replace("0.004", "0.4, read = 1"), r"gpu_seconds\.read: "),
        (HARDWARE.replace(", output = 300", ""), r"gpu_seconds\.output: "),
    ],
)
def test_a_mistake_in_hardware_s_keys_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[models\.large\]: {said}"):
        catalog(tmp_path, text)


def test_how_sure_a_model_s_answers_make_it_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "confidence.json"
    path.write_text(calibration(model="large").model_dump_json(), encoding="utf-8")
    named = catalog(tmp_path, MODEL + f'confidence = "{path}"').models["large"].confidence
    assert named == calibration(model="large")
    assert catalog(tmp_path, MODEL).models["large"].confidence is None


@pytest.mark.parametrize(
    ("fitted", "fine"), [("large", True), ("big", True), ("theirs", True), ("small", False)]
)
def test_a_confidence_is_of_the_model_that_it_was_fitted_on(
    tmp_path: Path, fitted: str, fine: bool
) -> None:
    path = tmp_path / "confidence.json"
    path.write_text(calibration(model=fitted).model_dump_json(), encoding="utf-8")
    served = 'engine = "vllm"\nurls = ["http://a"]\nserved = "theirs"'
    text = MODEL.replace('engine = "embedded"\nweights = "weights/large.gguf"', served)
    text += f'confidence = "{path}"'
    if fine:
        assert catalog(tmp_path, text).models["large"].confidence == calibration(model=fitted)
        return
    with pytest.raises(ConfigError, match=r"\[models\.large\]: .*confidence: .* 'small'"):
        catalog(tmp_path, text)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("{}", "is no file of `farthing train confidence`: model: "),
        ("not JSON", "is no file of `farthing train confidence`: "),
        (calibration(seed=1).model_dump_json().replace('"whole"', '"half"'), "whole: "),
        (calibration(seed=1).model_dump_json().replace(":1,", ":9,", 1), "version: "),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_confidence_that_cannot_be_read_is_named(
    tmp_path: Path, file: str | None, said: str
) -> None:
    path = tmp_path / "confidence.json"
    if file is not None:
        path.write_text(file, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        catalog(tmp_path, MODEL + f'confidence = "{path}"')
    place = f"{tmp_path / 'fleet.toml'}: [models.large]: confidence: "
    assert raised.value.message.startswith(place)
    assert str(path) in raised.value.message and said in raised.value.message


def test_a_confidence_may_be_bundled_or_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"weights/none/at-all\.json: cannot be read"):
        catalog(tmp_path, MODEL + 'confidence = "bundled:none/at-all.json"')
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.json").write_text(calibration(model="large").model_dump_json(), encoding="utf-8")
    assert catalog(tmp_path, MODEL + 'confidence = "~/c.json"').models["large"].confidence


def test_code_is_run_where_the_file_says_so_and_only_there(tmp_path: Path) -> None:
    assert catalog(tmp_path, MODEL).sandbox is None
    assert catalog(tmp_path, f"{MODEL}[sandbox]").sandbox == Limits()
    limits = catalog(tmp_path, f"{MODEL}[sandbox]\nseconds = 2.5\nmemory_mib = 512").sandbox
    assert limits == Limits(seconds=2.5, memory_mib=512)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[sandbox]\nseconds = 0", r"\[sandbox\]: seconds: .* greater than 0"),
        ("[sandbox]\nmemory_mib = 8", r"\[sandbox\]: memory_mib: "),
        ("[sandbox]\nnetwork = true", r"\[sandbox\]: network: "),
        ("sandbox = true", r"\[sandbox\]: must be a table"),
    ],
)
def test_bounds_of_code_that_make_no_sense(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        catalog(tmp_path, f"{text}\n{MODEL}")

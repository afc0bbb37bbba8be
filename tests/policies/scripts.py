"""A fleet of scripted models for tests of policies and money."""

from collections.abc import Sequence

from app.budget import Purse
from app.catalog import PICO, Catalog, ModelCard, Preset, Price
from app.engines.fake import Fake, Script
from app.gateway import Answer, Gateway, Order
from app.types import Call, Chunk, Speculates
from tests.policies.measured import measured
from tests.policies.profiles import profile

LENGTH = 40


def card(name: str, price: Price, family: str = "fake") -> ModelCard:
    return ModelCard(name=name, engine="embedded", weights="x.gguf", family=family, price=price)


def price(
    input: float, output: float, cached: float | None = None, drafted: float | None = None
) -> Price:
    """USD per million tokens."""
    return Price(input=input, output=output, cached_input=cached, drafted=drafted)


def fleet(small: Price | None = None, large: Price | None = None) -> Catalog:
    models = {
        "small": card("small", small or price(1, 2, 0.1)),
        "large": card("large", large or price(10, 20, 1, 2)),
    }
    options = {"small": "small", "large": "large", "raise_at": 2.0, "lower_at": 0.5}
    economy = Preset(name="economy", policy="entropy_switch", **options)
    made = Catalog(models, {"economy": economy}, profile=profile("small"))
    if models["small"].price.output > models["large"].price.output:  # where economy does not fit
        return measured(made, large=0.9, small=0.4)
    return measured(made, large=0.9, economy=0.7, small=0.4)


SPECULATES = Speculates(
    drafts=("small",),
    lookup=True,
    rules=("head", "confidence", "fixed"),
    acceptance=("exact", "lenient"),
    longest=6,
)
GUESSES = [(4, 2), (6, 6), (3, 0), (0, 0), (2, 1)] * 20  # of a pass, and of these those that stay


def engine(
    small: Sequence[float] = (),
    large: Sequence[float] = (),
    length: int = LENGTH,
    speculates: Speculates | None = SPECULATES,
    guesses: Sequence[tuple[int, int]] = GUESSES,
    **more: object,
) -> Fake:
    """Two models that answer `s0 s1 …` and `l0 l1 …`, with these entropies by position.

    For the large one the small one may guess ahead, with this success.
    """
    words = [f"l{i}" for i in range(length)]
    return Fake(
        {
            "small": Script([f"s{i}" for i in range(length)], small, **more),
            "large": Script(words, large, speculates=speculates, guesses=guesses, **more),
        }
    )


def call(model: str = "economy", **more: object) -> Call:
    message = {"role": "user", "content": "why is the sky blue"}
    return Call(model, (message,), **more)


def usd(micro: float) -> int:
    """Micro-dollars as 1e-12 USD: one token of a model priced at 1 USD per million costs 1."""
    return int(micro * PICO // 10**6)


def ask(gateway: Gateway, order: Order) -> Answer:
    return gateway.answer(order, Purse())


async def read(answer: Answer) -> list[Chunk]:
    return [chunk async for chunk in answer]


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)

"""What the ledger keeps of a request: who paid, what each model was paid for, what was decided."""

from dataclasses import replace

from sqlalchemy import select

from app.storage.tables import lines, settlements
from app.types import Usage
from tests.policies.scripts import SPECULATES


async def rows(house, table, id):
    column = table.c.id if table is settlements else table.c.settlement_id
    query = select(table).where(column == id).order_by(*table.primary_key)
    database = house.accounts.ledger.database
    return [dict(row) for row in await database.read(lambda c: c.execute(query).mappings().all())]


async def test_an_answer_is_on_record_as_its_client_was_told(house):
    key, token = await house.key()
    answer = await house.ask(token, "economy", {"X-Debug": "1", "X-Request-Id": "theirs"})
    told = answer.json()
    (settled,) = await rows(house, settlements, told["id"])
    assert (settled["key_id"], settled["policy"], settled["model"]) == (key, "economy", "economy")
    assert (settled["outcome"], settled["gpu_us"]) == ("kept", None)
    assert settled["cost"] / 10**12 == told["usage"]["cost"]
    assert settled["prompt"] == told["usage"]["prompt_tokens"]
    assert settled["completion"] == told["usage"]["completion_tokens"]
    assert settled["prices"] == told["usage"]["cost_details"]["price_version"]
    by_model = {line["model"]: line for line in await rows(house, lines, told["id"])}
    assert set(by_model) == {"small", "large"} == set(told["usage"]["cost_details"]["models"])
    assert sum(line["cost"] for line in by_model.values()) == settled["cost"]
    for name, tokens in told["farthing"]["models"].items():
        assert by_model[name]["visible"] == tokens
    found = await house.accounts.explanations.find(told["id"], None)
    (decided,) = found.content["decisions"]
    (switch,) = told["farthing"]["switches"]
    for name in ("kind", "model", "token", "entropy", "threshold", "rest_usd"):
        assert decided[name] == switch[name]


async def test_a_cost_with_guesses_can_be_explained(house, catalog, fake):
    """By what is on record, at the prices of its day."""
    script = replace(fake.scripts["large"], speculates=SPECULATES, guesses=[(4, 2), (3, 0)])
    fake.scripts = {**fake.scripts, "large": script}
    _, token = await house.key()
    answer = await house.ask(token, "large", {"X-Policy": "speculative"})
    (line,) = await rows(house, lines, answer.json()["id"])
    names = ("prompt", "cached", "completion", "drafted", "accepted")
    used = Usage(**{name: line[name] for name in names})
    assert (used.drafted, used.accepted) == (7, 2)
    assert line["cost"] == catalog.models["large"].price.of(used)


async def test_a_client_s_own_id_is_not_the_ledger_s(house):
    """Two requests under one id are two requests, and both are paid for."""
    _, token = await house.key()
    same = {"X-Request-Id": "chatcmpl-mine"}
    answers = [(await house.ask(token, "small", same)).json() for _ in range(2)]
    assert len({answer["id"] for answer in answers}) == 2
    for answer in answers:
        assert len(await rows(house, settlements, answer["id"])) == 1
    assert await rows(house, settlements, "chatcmpl-mine") == []


async def test_what_is_refused_is_no_settlement(house):
    key, token = await house.key(usd_total="0")
    assert (await house.ask(token)).status_code == 402
    assert await house.spent(key) == 0
    query = select(settlements).where(settlements.c.key_id == key)
    found = await house.accounts.ledger.database.read(lambda c: c.execute(query).all())
    assert found == []

"""The OpenAPI document; that it is true is what `make test-schema` finds out."""

import pytest
from jsonschema_rs import validator_for

from app.errors import FarthingError
from tests.routers.reading import asking

CHAT = "/v1/chat/completions"


@pytest.fixture
async def document(client):
    return (await client.get("/openapi.json")).json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def statuses(error):
    return {error.status}.union(*map(statuses, error.__subclasses__()))


async def test_every_status_of_ours_stands_somewhere_and_422_nowhere(document):
    declared = {int(s) for _, _, operation in operations(document) for s in operation["responses"]}
    assert declared - {200, 201} == statuses(FarthingError)


async def test_every_refusal_has_its_client_s_shape_and_every_answer_a_shape(document):
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            content = response["content"]
            where = (method, path, status)
            if int(status) >= 400 and path != "/health" and path != "/health/ready":
                name = "MessagesError" if path.startswith("/v1/messages") else "Error"
                error = {"$ref": f"#/components/schemas/{name}"}
                assert content == {"application/json": {"schema": error}}, where
            else:
                assert all(kind["schema"] for kind in content.values()), where
            assert response["headers"]["X-Request-Id"]["required"], where


async def test_what_generates_streams_and_takes_a_budget(document):
    chat = document["paths"][CHAT]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    taken = {p["name"] for p in chat["parameters"] if p["in"] == "header"}
    assert {"X-Budget-Usd", "X-Budget-Latency-Ms", "X-Policy", "X-Debug"} <= taken
    told = chat["responses"]["200"]["headers"]
    assert {"X-Farthing-Cost-Usd", "X-Farthing-Budget-Usd", "x-ratelimit-limit-tokens"} <= set(told)
    assert "Retry-After" in chat["responses"]["429"]["headers"]


async def test_a_key_is_asked_for_where_one_is(document):
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    asked = {path: operation["security"] for _, path, operation in operations(document)}
    assert {"bearer": []} in asked["/v1/models"] and {} in asked["/v1/models"]
    assert {} not in asked["/admin/keys"]
    assert asked["/metrics"] == []


async def test_examples_fit_their_schemas(document):
    tried = 0
    for _, _, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in content:
            schema = {**content["schema"], "components": document["components"]}
            assert validator_for(schema).is_valid(content["example"]), content
            tried += 1
    assert tried >= 8


async def test_an_answer_fits_its_schema_and_half_of_one_does_not(document, client):
    schema = {"$ref": "#/components/schemas/ChatCompletion", "components": document["components"]}
    fits = validator_for(schema).is_valid
    answer = (await client.post(CHAT, json=asking())).json()
    assert fits(answer)
    assert not fits({**answer, "usage": {}})

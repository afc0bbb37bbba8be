"""A gateway with a ledger of its own, and keys for it."""

from contextlib import AsyncExitStack

import httpx
import pytest

from app.accounts.keyring import checked
from app.factory import create_app
from app.settings import Settings
from tests.routers.reading import asking

CHAT = "/v1/chat/completions"


class House:
    """A gateway that runs, and who comes to it."""

    def __init__(self, app, stack):
        self.app = app
        self.accounts = app.state.front.door.accounts
        self._stack = stack

    async def client(self, address="127.0.0.1"):
        """One who comes from this address."""
        transport = httpx.ASGITransport(self.app, client=(address, 1234))
        client = httpx.AsyncClient(transport=transport, base_url="http://farthing")
        return await self._stack.enter_async_context(client)

    async def key(self, name="a key", **fields):
        """The id and token of a new key."""
        key, token = await self.accounts.keyring.create(checked({"name": name, **fields}))
        return key.id, token

    async def token(self, **fields):
        return (await self.key(**fields))[1]

    async def get(self, url, token=None, headers=None):
        return await self.visitor.get(url, headers=bearer(token) | (headers or {}))

    async def ask(self, token=None, model="small", headers=None, **fields):
        headers = bearer(token) | (headers or {})
        return await self.visitor.post(CHAT, json=asking(model, **fields), headers=headers)

    async def spent(self, id="anonymous"):
        """1e-12 USD."""
        return (await self.accounts.ledger.account(id)).spent["total"]


def bearer(token):
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def serve(tmp_path, catalog, fake):
    """Starts gateways on one ledger, with these settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings):
            url = f"sqlite:///{tmp_path}/ledger.db"
            app = create_app(
                Settings(**{"ledger": url, "state_dir": tmp_path, **settings}),
                catalog=catalog,
                engine=fake,
            )
            await stack.enter_async_context(app.router.lifespan_context(app))
            house = House(app, stack)
            house.visitor = await house.client()
            return house

        yield start


@pytest.fixture
async def house(serve):
    return await serve()

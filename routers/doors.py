"""Who comes in: a key's account, everybody's where no key is needed, or nobody."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

from fastapi.datastructures import Headers

from app.accounts.accounts import Accounts
from app.accounts.keys import OURS
from app.budget import Account, Purse
from app.errors import Forbidden, InvalidKey
from app.storage.records import KeyRow

TENANT = "X-Tenant-Id"
KEY = "X-Api-Key"  # where Anthropic's clients send it
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
_BEARER = re.compile(r"(?i:bearer) +([\x21-\x7e]{1,256}) *")
_BARE = re.compile(r" *([\x21-\x7e]{1,256}) *")
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class Door:
    """Decides by a request's headers, and by the address that it comes from."""

    accounts: Accounts | None = None  # None: there is no ledger, and so no keys
    no_auth: bool = False  # keys are not asked for
    public: bool = False  # reachable from beyond this machine: then a key is always needed
    peers: Sequence[Network] = ()  # who may say on whose behalf it asks
    origins: Sequence[str] = ()  # whose pages may ask even where no key is needed; or *
    purse: Purse = field(default_factory=Purse)

    async def account(self, headers: Headers, address: str | None) -> Account:
        """Who pays for this request.

        Raises InvalidKey, Forbidden, and LedgerUnavailable where it is not known who comes.
        """
        if self.accounts is None:
            self._check_origin(headers)
            return self.purse
        tenant = self._tenant(headers, address)
        if self.no_auth:
            return self.accounts.of(None, tenant)
        keyring, sent = self.accounts.keyring, headers.get("authorization") or headers.get(KEY, "")
        # One of our keys counts at once, even while we do not know yet that there are any.
        if not (self.public or OURS in sent or await keyring.any()):
            self._check_origin(headers)
            return self.accounts.of(None, tenant)
        return self.accounts.of(await keyring.authenticate(_token(headers)), tenant)

    async def admin(self, headers: Headers) -> tuple[Accounts, KeyRow]:
        """The ledger, for an administrator; a key of that kind is needed even without auth."""
        if self.accounts is None:
            raise Forbidden("There is no ledger (FARTHING_LEDGER=off), and so there are no keys")
        key = await self.accounts.keyring.authenticate(_token(headers))
        if not key.admin:
            raise Forbidden("This needs an administrator's API key: `farthing keys create --admin`")
        return self.accounts, key

    def _check_origin(self, headers: Headers) -> None:
        """Where no key protects the port, pages of other hosts must not spend through it."""
        origin = headers.get("origin")
        if origin is None or self.no_auth or {origin, "*"} & set(self.origins):
            return
        try:
            host = urlsplit(origin).hostname or ""
            local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise Forbidden(
                "A page of another host may not use a gateway without API keys: make one with"
                " `farthing keys create`, or allow the page in FARTHING_CORS_ORIGINS"
            )

    def _tenant(self, headers: Headers, address: str | None) -> str:
        """On whose behalf, where a trusted peer says so; anybody may claim to be anybody."""
        claimed = headers.getlist(TENANT)
        if not self.peers or len(claimed) != 1 or not _TENANT.fullmatch(claimed[0]):
            return ""
        return claimed[0] if _is_within(address, self.peers) else ""


def _token(headers: Headers) -> str | None:
    """The bearer token, or without one the bare key. Raises InvalidKey for what is neither."""
    for name, form, expected in (
        ("Authorization", _BEARER, "as `Bearer ` and an API key"),
        (KEY, _BARE, "as an API key"),
    ):
        if sent := headers.getlist(name):
            match = form.fullmatch(sent[0]) if len(sent) == 1 else None
            if match is None:
                raise InvalidKey(f"{name}: must be sent once, {expected}")
            return match[1]
    return None


def _is_within(address: str | None, networks: Sequence[Network]) -> bool:
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(ip in network for network in networks)

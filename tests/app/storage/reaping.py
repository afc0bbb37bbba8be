"""What a gateway does with expired reservations every now and then, done now."""


async def reap(ledger):
    """Settle them; how many."""
    return sum([await ledger.settle_expired(id, key) for id, key in await ledger.expired()])

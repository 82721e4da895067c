"""What accounts need while a gateway runs: put into the application's state at its start, taken down at its end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.datastructures import State

from services.gateway.accounts.access import AccountWatch
from services.gateway.accounts.first_accounts import ensure_first_accounts
from services.gateway.accounts.passwords import Passwords
from services.gateway.accounts.sessions import Sessions
from shared.clock import utc_now


@asynccontextmanager
async def open_accounts(state: State) -> AsyncIterator[None]:
    """Sets `sessions`, `passwords` and `watch`; wants `settings`, `db` and `nc`. The first accounts are there then."""
    state.sessions = Sessions(state.settings.session_secret)
    state.passwords = Passwords()
    state.watch = AccountWatch(state.db, state.nc)
    try:
        await ensure_first_accounts(state.db, state.passwords, state.settings, utc_now())
        await state.watch.start()
        yield
    finally:
        await state.watch.stop()
        state.passwords.close()

"""Routes: accounts, for admins. None is ever deleted, since what it did stays in the log: it is frozen."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller, admin_only, as_role
from services.gateway.accounts.first_accounts import LOCAL
from services.gateway.accounts.passwords import NewPassword
from services.gateway.database.tables import Role, User
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Flag, Order, Page, asked_page
from services.gateway.problems import Problem, ProblemError, documented, not_found
from shared.clock import utc_now

AccountName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(?!\n)$")]
"""`$` alone would let a line feed through."""

_ORDER = Order({"name": User.name, "created_at": User.created_at}, id_=User.id, default="name")
_NAME_TAKEN = Problem(
    status=409,
    code="name_taken",
    title="The name is taken",
    detail="there is an account ann already: take another name",
)
_LAST_ADMIN = Problem(
    status=409,
    code="last_admin",
    title="The last admin",
    detail="this is the last admin who is not frozen: make another account an admin first",
)


class UserView(msgspec.Struct, frozen=True):
    """An account."""

    id: str
    name: str
    role: Role
    is_frozen: bool
    has_password: bool
    """False for the machine's own account, which only its token opens."""
    created_at: datetime


class NewUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account to be made."""

    name: AccountName
    password: NewPassword
    role: Role = "user"


class UserChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed; what is absent stays."""

    role: Role | msgspec.UnsetType = msgspec.UNSET
    is_frozen: bool | msgspec.UnsetType = msgspec.UNSET
    password: NewPassword | msgspec.UnsetType = msgspec.UNSET


def user_view(user: User) -> UserView:
    """As it is answered."""
    return UserView(
        user.id, user.name, as_role(user.role), user.is_frozen, user.password_hash is not None, user.created_at
    )


@get("/", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401, 403))
async def list_users(
    state: State,
    asked: NamedDependency[Asked],
    role: Annotated[str | None, QueryParameter(pattern=r"^(admin|user)(?!\n)$")] = None,
    is_frozen: Flag = None,
) -> Page[UserView]:
    """All accounts, by name."""
    query = select(User)
    if role is not None:
        query = query.where(User.role == role)
    if is_frozen is not None:
        query = query.where(User.is_frozen.is_(is_frozen == "true"))
    async with state.db.read() as session:
        rows, next_ = await _ORDER.fetch(session, query, asked)
    return Page([user_view(row) for row in rows], next_)


@post("/", responses=documented(400, 401, 403, _NAME_TAKEN))
async def create_user(data: JSONBody[NewUser], request: Request[Caller, Any, Any], state: State) -> UserView:
    """Makes an account."""
    if data.name == LOCAL:
        raise _name_taken(data.name)  # the machine's token would open it
    now = utc_now()
    user = User(
        id=ids_of(request).new_id(),
        name=data.name,
        role=data.role,
        password_hash=await state.passwords.hash(data.password),
        is_frozen=False,
        session_version=1,
        created_at=now,
    )
    try:
        async with state.db.write() as session:
            made_before = await session.get(User, user.id)  # by this very request, before it was repeated
            if made_before is not None:
                return user_view(made_before)
            session.add(user)
            await session.flush()
            details = {"name": user.name, "role": user.role}
            await audit.record(session, request.user.actor, "user.created", user.id, details, now)
    except IntegrityError as error:
        raise _name_taken(data.name) from error
    return user_view(user)


@get("/{user_id:str}", responses=documented(401, 403, 404))
async def read_user(user_id: FromPath[str], state: State) -> UserView:
    """One account."""
    async with state.db.read() as session:
        return user_view(_found(await session.get(User, user_id), user_id))


@patch("/{user_id:str}", responses=documented(400, 401, 403, 404, _LAST_ADMIN))
async def change_user(
    user_id: FromPath[str], data: JSONBody[UserChanges], request: Request[Caller, Any, Any], state: State
) -> UserView:
    """Changes an account's role, freezes or unfreezes it, or sets its password.

    Freezing and a new password end all its sessions at once. One active admin always remains.
    """
    now = utc_now()
    new_hash = await state.passwords.hash(data.password) if data.password is not msgspec.UNSET else None
    async with state.db.write() as session:
        if data.role == "user" or data.is_frozen is True:
            await _lock_admins(session)
        user = _found(await session.get(User, user_id, with_for_update=True), user_id)
        for action, details in _apply(user, data, new_hash):
            await audit.record(session, request.user.actor, action, user.id, details, now)
        await session.flush()
        if not await _has_active_admin(session):
            raise ProblemError(409, _LAST_ADMIN.code, _LAST_ADMIN.title, f"{user.name}: {_LAST_ADMIN.detail}")
    await state.watch.announce(user.id)
    return user_view(user)


def _apply(user: User, changes: UserChanges, new_hash: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Makes the changes; what of them the audit log is told."""
    told: list[tuple[str, dict[str, Any]]] = []
    if changes.role is not msgspec.UNSET and changes.role != user.role:
        told.append(("user.role_changed", {"from": user.role, "to": changes.role}))
        user.role = changes.role
    if changes.is_frozen is not msgspec.UNSET and changes.is_frozen != user.is_frozen:
        told.append(("user.frozen" if changes.is_frozen else "user.unfrozen", {}))
        user.is_frozen = changes.is_frozen
        user.session_version += 1  # sessions from before do not come back with the account
    if new_hash is not None:
        told.append(("user.password_set", {}))
        user.password_hash = new_hash
        user.session_version += 1
    return told


async def _lock_admins(session: AsyncSession) -> None:
    """Whoever takes an admin away waits here for whoever else does: two can't take the last two at once.

    SQLite needs and has no such lock, since there is one writer at a time.
    """
    await session.execute(select(User.id).where(User.role == "admin").order_by(User.id).with_for_update())


async def _has_active_admin(session: AsyncSession) -> bool:
    active = select(func.count()).select_from(User).where(User.role == "admin", User.is_frozen.is_(False))
    return bool(await session.scalar(active))


def _found(user: User | None, user_id: str) -> User:
    if user is None:
        raise not_found(f"account {user_id}", "GET /api/users")
    return user


def _name_taken(name: str) -> ProblemError:
    detail = f"there is an account {name} already, or the name is reserved: take another one"
    return ProblemError(409, _NAME_TAKEN.code, _NAME_TAKEN.title, detail)


users_router = Router(
    path="/users",
    tags=["users"],
    guards=[admin_only],
    route_handlers=[list_users, create_user, read_user, change_user],
)

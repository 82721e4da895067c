"""Sessions: a signed token (JWT) that says who logged in, and which of the account's session versions it belongs to.

Nothing is stored about one: raising the account's version ends all that were given out before.
"""

from datetime import datetime, timedelta

import jwt
import msgspec

LIFETIME = timedelta(hours=12)
_ALGORITHM = "HS256"


class Session(msgspec.Struct, frozen=True):
    """What a valid session says. Its account may be frozen or past that version: the database knows."""

    user_id: str
    version: int
    expires_at: datetime


class Sessions:
    """Gives out and reads sessions. Every gateway must have the same secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def give(self, user_id: str, version: int, now: datetime) -> tuple[str, datetime]:
        """(token, when it expires)."""
        expires_at = (now + LIFETIME).replace(microsecond=0)
        claims = {"sub": user_id, "version": version, "iat": now, "exp": expires_at}
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM), expires_at

    def read(self, token: str) -> Session | None:
        """None for whatever is not a session of ours, or not any more."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],  # never what the token itself says
                # A gateway whose clock is a little behind must not refuse what another has just given out.
                options={"require": ["sub", "version", "iat", "exp"], "verify_iat": False},
            )
            return msgspec.convert(
                {"user_id": claims["sub"], "version": claims["version"], "expires_at": claims["exp"]},
                Session,
                strict=False,
            )
        except (jwt.InvalidTokenError, msgspec.ValidationError):
            return None

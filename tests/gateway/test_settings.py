"""Settings that can't work are refused at the start, in words."""

from __future__ import annotations

import pytest

from services.gateway.settings import settings_from_environment

ENVIRONMENT = {
    "TREADLE_DATABASE_URL": "sqlite:////nowhere/treadle.sqlite",
    "TREADLE_GATEWAY_KEYRING_FILE": "/nowhere/keyring.json",
}


def test_trusted_proxies_are_addresses_and_networks() -> None:
    written = {**ENVIRONMENT, "TREADLE_TRUSTED_PROXIES": " 192.0.2.1, 2001:db8::/64,"}
    assert settings_from_environment(written).trusted_proxies == ("192.0.2.1", "2001:db8::/64")
    assert settings_from_environment(ENVIRONMENT).trusted_proxies == ()


@pytest.mark.parametrize("proxies", ["*", "proxy", "0.0.0.0/0", "::/0", "192.0.2.1/24", "192.0.2.1;192.0.2.2"])
def test_nobody_is_trusted_by_mistake(proxies: str) -> None:
    with pytest.raises(ValueError, match="TREADLE_TRUSTED_PROXIES"):
        settings_from_environment({**ENVIRONMENT, "TREADLE_TRUSTED_PROXIES": proxies})

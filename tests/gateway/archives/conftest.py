"""What tests of archives share."""

from tests.gateway.plans.conftest import log

__all__ = ["log"]

"""How much an operator wants agents to be kept in."""

from typing import Literal

SandboxMode = Literal["required", "preferred", "off"]
"""`required`: no sandbox, no runner. `preferred`: where there can be none, the runner says so and works without."""

"""`python -m services.planner`: settings come from the environment, see `shared.bus`."""

import asyncio

from services.planner.app import main
from shared.bus import bus_settings_from_environment

if __name__ == "__main__":
    asyncio.run(main(bus_settings_from_environment()))

"""`python -m service`: serves with the settings of the environment, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

from service import settings as settings_module
from service.server import serve
from service.telemetry import tracing


def main() -> int:
    try:
        settings = settings_module.from_environment()
        traces = tracing.provider_from_environment()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return serve(settings, traces)


def leave(code: int) -> NoReturn:
    """Ends the process now: a dead GPU may hang whoever tidies up, and a model that is being loaded be waited for."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    leave(main())

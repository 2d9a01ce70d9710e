"""What the command lines share: how they fail."""

import sys
from collections.abc import Callable
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Ends the program with one line that says what to do."""
    sys.exit(f"{sys.argv[0]}: {message}")


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; a fault of its input ends it with one line, a fault of ours with a traceback."""
    try:
        main()
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; --resume goes on where that is possible")

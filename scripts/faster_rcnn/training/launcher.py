"""What `torchrun` tells a process in its environment. Imports no torch, because the check of a data set does not."""

import os


def processes_on_this_machine() -> int:
    """The number that `torchrun` has started here; of all processes, if another launcher does not tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))

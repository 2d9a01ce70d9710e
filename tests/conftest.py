"""Settings for all tests, made before torch is first imported."""

import os

# OpenMP reads these when torch is first imported. Its threads would spin while they wait and take the cores from other
# processes: on two loaded cores the training tests took three times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one worker per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

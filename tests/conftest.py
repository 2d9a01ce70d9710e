"""Settings for all tests, made before torch is first imported."""

import os

# OpenMP's threads would spin while they wait and take the cores from other processes: on two loaded cores the training
# tests took three times as long. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

"""Settings for all tests, made before torch is first imported: OpenMP reads them then."""

import os

# The tests leave nothing in the user's cache, and read nothing from it.
os.environ.setdefault("FASTER_RCNN_CACHE", "")
# The tests run in one process per core, and their tensors are small. On a busy machine a second thread costs many times
# the work that it saves, because the threads of one operation wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that spin while they wait would take the cores from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

"""One thread for PyTorch in the tests of this folder.

Their tensors are small. A second thread gains little, and on a busy machine it costs many times the work, because the
threads of one operation wait for each other.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

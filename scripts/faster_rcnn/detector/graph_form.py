"""The form in which a detector is being exported: the same answers, by the operations that suit one kind of provider.

"portable" runs well on every provider, and fastest on a CPU. "cuda" avoids what CUDA is slow at: loops of the host over
images and levels, results whose size the host must wait for, and extra passes over feature maps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

Form = Literal["portable", "cuda"]

_form: ContextVar[Form] = ContextVar("form", default="portable")


@contextmanager
def exporting_as(form: Form) -> Iterator[None]:
    """Within it, layers are exported in this form."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def for_cuda() -> bool:
    """Whether the layers are being exported in the form for CUDA."""
    return torch.compiler.is_exporting() and _form.get() == "cuda"

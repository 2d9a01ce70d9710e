"""`python -m service`: the same as `faster-rcnn serve`."""

from __future__ import annotations

import sys

from service import serve
from service.serve import leave

__all__ = ["leave", "main"]


def main() -> int:
    return serve.main(prog="python -m service")


if __name__ == "__main__":
    sys.exit(main())

"""`python -m service`: the same as `faster-rcnn serve`."""

from __future__ import annotations

import sys

from service import serve


def main() -> int:
    return serve.main(prog="python -m service")


if __name__ == "__main__":
    sys.exit(main())

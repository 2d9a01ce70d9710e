"""`faster-rcnn compare` as a script."""

import sys

from service.command_line import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))

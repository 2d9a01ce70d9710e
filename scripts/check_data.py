"""`faster-rcnn check` as a script."""

import sys

from service.command_line import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))

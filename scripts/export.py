"""`faster-rcnn export` as a script."""

import sys

from service.command_line import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))

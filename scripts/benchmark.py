"""`faster-rcnn benchmark` as a script."""

import sys

from service.command_line import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))

"""`faster-rcnn train` as a script, which is what torchrun starts."""

import sys

from service.command_line import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

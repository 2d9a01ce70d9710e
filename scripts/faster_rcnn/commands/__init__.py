"""The subcommands of `faster-rcnn`, one module each, with `main(argv)`."""

"""The subcommands of `faster-rcnn`, one module per subcommand, each with a `main(argv)`."""

"""The command line: what ``lvmae`` asks and prints. Everything that it does is done by the other modules."""

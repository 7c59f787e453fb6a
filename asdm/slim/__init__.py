"""`asdm slim`: from a checkpoint and pictures to a smaller model, by the other commands, each in its own process."""

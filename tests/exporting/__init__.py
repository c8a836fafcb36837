"""Students leave: every format is read back by processes and libraries that have none of our code."""

"""What needs a clock: every model of a table against its dense twin, in interleaved rounds."""

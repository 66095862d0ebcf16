"""What needs no clock: every printed cell recounted from the models, and judged."""

"""From raw sources to batches: one episode schema, one loader."""

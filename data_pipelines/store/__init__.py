"""The episode store: ArrayRecord shards written once, read at random."""

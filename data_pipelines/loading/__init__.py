"""From a mixture of stores to the batches of an objective."""

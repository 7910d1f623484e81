"""From a verified checkpoint to a bundle."""

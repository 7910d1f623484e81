"""Tables between our parameter names and the reference's, one a model."""

"""Our modules against recorded outputs of the reference, number by number."""

"""One file per dataset, or per family of datasets with the same rules."""

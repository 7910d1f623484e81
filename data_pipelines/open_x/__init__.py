"""One function per Open-X dataset, from its raw step to the schema."""

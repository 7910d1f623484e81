"""The same batches straight from RLDS, without conversion."""

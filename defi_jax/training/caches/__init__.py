"""Inputs of training that are computed once and kept."""

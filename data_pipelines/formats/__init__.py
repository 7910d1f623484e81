"""Bytes to arrays and back: images, videos, contact sheets, TFRecords, json, numpy pickles."""

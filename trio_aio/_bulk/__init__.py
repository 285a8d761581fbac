"""Calls of many requests: read and write many ranges, read ahead, write behind."""

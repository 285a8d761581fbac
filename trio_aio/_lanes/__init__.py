"""Lanes: each carries one request from its slot through the queue and the submission to its completion."""

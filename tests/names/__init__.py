"""Tests of paths, listings and trees."""

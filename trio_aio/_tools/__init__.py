"""The command line: doctor and bench."""

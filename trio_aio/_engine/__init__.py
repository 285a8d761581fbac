"""The engine: which lane a request takes, in which order, and whose completion it is. It never awaits."""

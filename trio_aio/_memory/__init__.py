"""Memory that the kernel may use: callers' buffers, held while it does, and aligned memory from a pool."""

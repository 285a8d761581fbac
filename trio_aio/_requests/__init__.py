"""One class for each kind of request."""

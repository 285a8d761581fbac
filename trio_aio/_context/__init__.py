"""The engine and the event loop together: submit a request, wait for it, cancel it, close."""

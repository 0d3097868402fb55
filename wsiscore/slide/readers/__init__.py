"""One module a file format, and the list of them in `registry`."""

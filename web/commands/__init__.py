"""The command line, a file for each noun; `web/__main__.py` puts them together."""

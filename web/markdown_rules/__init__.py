"""Rules that the Markdown parser gets besides its own, one topic a file; each reads its text once."""

"""Looking back: is a folder as it was written, where does it come from, and why is a row where it is."""

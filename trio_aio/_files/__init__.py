"""What users hold: files, text files and streams, and the functions that open them."""

"""The released layout, in and out, and the trained miniature that comes with the book."""

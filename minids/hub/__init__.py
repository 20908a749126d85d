"""Reading and writing the released layout, and the bundled trained miniature."""

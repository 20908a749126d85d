"""Numbers of few bits, and the scales that say what they stand for."""

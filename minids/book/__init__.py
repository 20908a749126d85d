"""What the chapters use beside the library itself."""

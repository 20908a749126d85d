"""Low-precision number formats with scales."""

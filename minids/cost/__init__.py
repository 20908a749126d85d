"""What a model costs: parameters, cache bytes and FLOPs from its configuration alone, and the published numbers."""

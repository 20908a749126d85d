"""What a model costs, computed from its configuration alone, without torch; and numbers quoted from the reports."""

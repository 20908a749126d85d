"""Using a trained model: generating text."""

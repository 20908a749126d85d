"""Inference: generating text with a trained model."""

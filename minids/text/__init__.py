"""Text: the corpus and its batches, the tokenizer, and the n-gram baseline."""

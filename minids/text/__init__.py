"""Text: the corpus and its batches, the tokenizer, and what is counted: n-grams, names, repeated windows."""

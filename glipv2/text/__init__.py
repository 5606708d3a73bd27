"""Text: prompts, token spans and the tokenizer."""

"""Text: tokenizers, prompts, token spans, packed captions, mirrored texts and hidden words."""

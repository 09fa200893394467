"""Are we Merging the Right Models? Impact of Expert Training Duration on Model Merging for LLMs."""

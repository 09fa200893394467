"""Causal language models on chats: the loss is taken on the response."""

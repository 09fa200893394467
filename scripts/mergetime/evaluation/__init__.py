"""Evaluates loaded models on benchmarks through lm-eval; tasks are loaded once and serve many subjects."""

"""The language model SmolLM2-135M-Instruct."""

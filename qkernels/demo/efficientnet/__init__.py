"""The image classifier EfficientNet-Lite0."""

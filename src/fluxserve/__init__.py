"""A self-hosted server for the Flux image generation API."""

__version__ = "0.1.0"

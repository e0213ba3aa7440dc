"""Peer-to-peer federation for self-hosted inference boxes."""

__version__ = "0.1.0"

"""Everything that knows libp2p; nothing outside this package imports it."""

"""Programs around the engine: refreshctl, demo, bench. Nothing in wire, refreshd or proxyd imports them."""

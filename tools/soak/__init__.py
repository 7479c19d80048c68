"""The soak: an engine under load that is reloaded, upgraded, killed and stopped at random; then checked."""

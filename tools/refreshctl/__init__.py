"""refreshctl: the operator's hand on an engine, over its admin socket."""

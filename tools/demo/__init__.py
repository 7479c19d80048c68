"""The whole job on one machine: engine, agent, origin and cache, and a story that shows what they do."""

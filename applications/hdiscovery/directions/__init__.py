"""K directions under a sampler: how they are described, stored and opened."""

"""Pictures about pictures: strips, grids, animations, maps."""

"""Pictures about pictures: strips, grids, animations, maps. From the pipeline and what it rests on; no metrics."""

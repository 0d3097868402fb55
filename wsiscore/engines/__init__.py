"""Engines that run a network on the CPU in place of torch: a network as a graph, compiled and run on tiles."""

"""Pruning plans: edits, the topology that they apply to, which are legal, and the presets; without torch."""

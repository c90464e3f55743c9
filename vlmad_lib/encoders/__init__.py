"""Frozen CLIP image and text towers: weights, blocks, prompts, the device they run on, and features kept on disk."""

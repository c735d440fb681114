"""What several families are built from: transformer blocks, losses, reading checkpoints, decoding."""

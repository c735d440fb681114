"""What `--precision` takes, for the command lines, which import nothing heavy, and for Fabric."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")

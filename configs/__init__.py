"""Configuration files: one folder a model, one YAML file a task; `configs.schema` reads and checks them."""

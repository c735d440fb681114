"""Configurations of readers, as tests write them."""

from data.readers import READERS, ReaderConfig


def configured(name, files=None, **options) -> ReaderConfig:
    """Of the reader `name`."""
    return READERS[name].Config(reader=name, **({} if files is None else {"files": files}), **options)

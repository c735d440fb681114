"""Files on disk: atomic writing, hashes, locks, downloads."""

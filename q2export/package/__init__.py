"""Engine packages: the manifest, writing all or nothing, and checked reading."""

"""Scripts: fetch.py downloads and packs where there is a network, build.py installs elsewhere."""

"""The stores that are measured, one file each; `catalog.py` lists them."""

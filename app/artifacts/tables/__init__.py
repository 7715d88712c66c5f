"""Item and user tables: features that live in the service, so that requests send keys.

A table is a folder of the store, `<store>/<model>/items/<n>/` or `<store>/<model>/users/<n>/`. It
is never changed. Deltas, `<n>.delta/<k>/`, add, replace and remove rows of table n.

- `description.py`: `table.json`, and which models a table fits
- `keys.py`: key to row, in memory-mapped arrays
- `reader.py`: verify and map a table; `Table` is what requests read
- `publish.py`: write a table or a delta, completely or not at all; compact; prune
"""

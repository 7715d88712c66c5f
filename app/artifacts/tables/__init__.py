"""Item and user tables: features that live in the service, so that requests send keys.

A table is a folder of the store, `<store>/<model>/items/<n>/` or `<store>/<model>/users/<n>/`. It
is never changed. Deltas, `<n>.delta/<k>/`, add, replace and remove rows of table n.

- `description.py`: `table.json`, and the files that it describes
- `compatibility.py`: which versions of a model can use a table
- `keys.py`: key to row, in memory-mapped arrays
- `listing.py`: the tables and deltas in a store
- `segment.py`: verify and map the files of a table or delta
- `table.py`: a table with its deltas, as requests read it
- `writer.py`: write the files of a table or delta
- `publish.py`: publish a table or delta, completely or not at all; compact; remove
"""

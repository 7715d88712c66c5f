"""How a foreign module is described: what `gatehouse import --help` says below its flags."""

GUIDE = """\
A module that takes one matrix, a row a candidate, is described by flags:

  gatehouse import ctr.pt --name ctr --columns age,gender@3,price,item@5000 --user age,gender
                   --tasks click:logit,dwell:log-seconds

A column is NAME for a number, NAME:16 for 16 numbers, NAME@5000 for an id from 0 to 4999, checked
to be whole and in range. Tasks stand in the order of the outputs, columns of a matrix or parts of a
tuple; a dict has a key for each. What a module gives for a task is

  probability, logit, log-probability       the score is a probability
  seconds, log-seconds, log1p-seconds       the score is a number of seconds
  number                                    the score is what the module gives

Every other module is described by a file, --config:

  name = "ctr"                              # the model's name in the store
  style = "positional"                      # or "dict": one dict of tensors, by argument name
  architecture = "DeepFM"                   # for people
  ranges = { age = [18, 90] }               # dense values to try it with; else standard normal
  unused = ["zip_code"]                     # inputs that the module is known to ignore
  ranking = { formula = "power_product", weights = { click = 1.0 } }

  [[inputs]]                                # the features, in the order in which they are offered
  name = "item"
  side = "candidate"                        # or "user": sent once a request, tiled to the rows
  kind = "id"                               # dense (dim) | id | id_list (max_length, padding,
  vocabulary_size = 5000                    #   padding_side = "right" or "left")
  unknown = "reject"                        # or the row that an id outside the vocabulary takes
  default = 0                               # where a request leaves the feature out
  encoding = { kind = "hash", buckets = 4999 }  # of strings; or "vocabulary", file beside this one

  [[arguments]]                             # the module's tensors; left out: all as one matrix
  name = "item_id"
  pack = ["item"]                           # features side by side
  dtype = "int64"                           # or "float32"; ids as float32 up to 2**24 only
  rank = 1                                  # 1 is [B], 2 is [B, width]

  [[tasks]]
  name = "click"
  gives = "logit"
  clamp = [0.0, 0.9]                        # optional: the score is cut to this
  output = { path = 0, column = 1 }         # optional: index or key, then column

The module runs with 1, 2 and 257 rows. It is refused, with the reason, if it fails, if a row's
output depends on other rows or is not finite, if it changes its own state or draws random numbers,
or if no output depends on one of its inputs. Nothing is unpickled.
"""

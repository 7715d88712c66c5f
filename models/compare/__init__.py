"""Several networks on one data set, with several seeds each."""

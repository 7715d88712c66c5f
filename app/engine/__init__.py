"""From a request to task scores: encode, queue, batch, run on a lane; knows no HTTP."""

"""What people write themselves: FastAPI, a pydantic body, and the model in the endpoint."""

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from reference import PORT, WORKERS, Reference, rows_of
from starlette.concurrency import run_in_threadpool

app = FastAPI()
reference = Reference()


class Rows(BaseModel):
    """The body of a request."""

    x: list[list[float]]


@app.post("/json")
def score_json(rows: Rows) -> list[list[float]]:
    """Score a JSON request, in FastAPI's pool of threads."""
    import numpy as np

    return reference.score([np.array(rows.x, np.float32)])[0].tolist()


@app.post("/binary")
async def score_binary(request: Request) -> Response:
    """Score a binary request, in the same pool."""
    body = await request.body()
    (scores,) = await run_in_threadpool(reference.score, [rows_of(body)])
    return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_server:app", port=PORT, workers=WORKERS, access_log=False, log_level="error"
    )

"""The least a server can be, without a process for the model: what bare uvicorn and Starlette do with the same body."""

from __future__ import annotations

import io
import sys

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def ping(request: Request) -> Response:
    return Response()


async def echo(request: Request) -> Response:
    return JSONResponse(await request.json())


async def npy(request: Request) -> Response:
    array = np.load(io.BytesIO(await request.body()), allow_pickle=False)
    return JSONResponse({"shape": list(array.shape)})


app = Starlette(
    routes=[Route("/ping", ping), Route("/echo", echo, methods=["POST"]), Route("/npy", npy, methods=["POST"])]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")

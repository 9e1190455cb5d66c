"""What many people put into their containers: Flask, started by gunicorn."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/ping")
def ping() -> Response:
    return Response()


@app.post("/echo")
def echo() -> Response:
    return jsonify(request.get_json())

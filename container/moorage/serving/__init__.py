"""`serve`: an HTTP front that always answers, and one model process per device behind it."""

from moorage.serving.exchange import RequestError as RequestError

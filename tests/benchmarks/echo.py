"""``python -m tests.benchmarks.echo``: a grpc.aio server that gives back what it gets; prints its port."""

from __future__ import annotations

from typing import Any

import grpc
import uvloop

from tests.load import PREDICT


async def main() -> None:
    """Serve until killed."""

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    service, _, method = PREDICT.strip("/").partition("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(echo)}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())

"""C14: a CUDA context that has died ends the process within seconds, so that its supervisor starts it again."""

import contextlib
import http.client
import signal
import subprocess
import time
from urllib.parse import urlsplit

from benchmarks.gpu.faulty_service import DEAD, environment, program
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import EXAMPLE, Clock, Setup
from benchmarks.load import servers

WITHIN = 5.0  # seconds


def dead_context(setup: Setup, clock: Clock) -> Finding:
    """After the fault: the request gets 503, /readyz answers 503 or nothing, and the process ends with 1."""
    found = Finding()
    image = EXAMPLE.read_bytes()
    # a stopping service would otherwise wait for its load balancer
    settings = {"SHUTDOWN_GRACE": "60", **environment()}
    with servers.own_service(setup.small, settings=settings, program=program(DEAD)) as service:
        before = _post(service.url, image)
        found.expect(before == 200, f"before the fault, a request gets {before}")
        service.process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        began = time.monotonic()
        status = _post(service.url, image)
        found.figures["status of the request"] = status
        found.expect(status in (503, None), f"a request on the dead engine gets {status}; 503 is expected")
        with contextlib.suppress(OSError):  # it may have ended by now
            ready, _ = servers.get(service.url.removesuffix("/detect") + "/readyz")
            found.figures["status of /readyz"] = ready
            found.expect(ready == 503, f"/readyz answers {ready}; 503 is expected")
        try:
            code = service.process.wait(min(2 * WITHIN, max(1.0, clock.left())))
        except subprocess.TimeoutExpired:
            found.faults.append(f"the process was still there after {2 * WITHIN:.0f} s")
            return found
        taken = time.monotonic() - began
        found.figures |= {"exit code": code, "seconds until the end": taken}
        found.expect(code == 1, f"the process ended with {code}; 1 is expected")
        found.expect(taken <= WITHIN, f"the process ended after {taken:.1f} s; {WITHIN:.0f} s are allowed")
    return found


def _post(url: str, image: bytes) -> int | None:
    """The status, or None if the server ended the connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("POST", urlsplit(url).path, image, {"Content-Type": "image/jpeg"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()

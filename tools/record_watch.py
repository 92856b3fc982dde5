"""Records the page of `ptl watch` as an animated picture, by replaying a stage of a finished run.

    ptl run recipes/distill_on_policy.yaml --home /tmp/shown
    PYTHONPATH=. python tools/record_watch.py distill_on_policy --home /tmp/shown -o docs/watch.webp

Wants Chromium with chromedriver (Debian: apt install chromium-driver) and Pillow. The same
run gives the same pictures: the slider is moved, and nothing is waited for but the drawing.
"""

from __future__ import annotations

import argparse
import io
import threading
from pathlib import Path

from PIL import Image

from posttrain_recipes.store import Store, default_home
from posttrain_recipes.watch import server
from tests.browser import Browser, browser

HOLD_MS = 2000
"""How long the last picture stands."""


def pictures(window: Browser, count: int) -> list[Image.Image]:
    """The page from the first step to the last."""
    last = int(window.run("return document.getElementById('slider').max"))
    found = []
    for number in range(count + 1):
        step = round(last * number / count)
        window.run(
            "const s = document.getElementById('slider'); s.value = arguments[0]; s.oninput()", step
        )
        window.until(f"return document.getElementById('at').textContent.startsWith('step {step} ')")
        found.append(Image.open(io.BytesIO(window.picture())).convert("RGB"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--home", type=Path, default=default_home(None))
    parser.add_argument("--stage", help="by default the last one")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/watch.webp"))
    parser.add_argument("--size", default="1280x1190", help="of the page, in pixels")
    parser.add_argument("--width", type=int, default=1000, help="of the picture")
    parser.add_argument("--seconds", type=float, default=9.0)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    record = Store(asked.home).find(asked.run)
    token, sock = server.new_token(), server.listening()
    made = server.server(asked.home, record.id, token, sock)
    threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True).start()
    with browser() as window:
        width, height = map(int, asked.size.split("x"))
        window.size(width, height, asked.dark)
        window.open(server.address(sock, token))
        window.until("return document.body.dataset.ready && document.querySelector('.stage')")
        name = asked.stage or record.stages[-1].name
        window.run(
            "[...document.querySelectorAll('.stage')]"
            ".find((one) => one.firstChild.textContent === arguments[0]).click()",
            name,
        )
        found = pictures(window, asked.frames)
    made.should_exit = True
    scaled = asked.width, round(height * asked.width / width)
    found = [picture.resize(scaled, Image.Resampling.LANCZOS) for picture in found]
    each = round(1000 * asked.seconds / len(found))
    times = [each] * (len(found) - 1) + [HOLD_MS]
    found[0].save(
        asked.output, save_all=True, append_images=found[1:], duration=times, loop=0,
        quality=62, method=4,
    )  # fmt: skip
    print(f"{asked.output}: {len(found)} pictures, {asked.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

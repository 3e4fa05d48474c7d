"""Claims without a record, as long as the API server does not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nri_dranet.dra.rebuild import Node, Rebuilder
from nri_dranet.kube.client import ApiError
from nri_dranet.kube.pods import PodInfo


def test_an_end_does_not_wait_for_an_api_server_that_is_away() -> None:
    """Not one more claim is asked for once this life is to end; the next one judges them."""
    pods = [PodInfo("default", f"p{number}", f"pod-{number}", False, {"nic": f"c{number}"}, {}) for number in range(9)]
    asked: list[str] = []

    def get(path: str, **_: Any) -> None:
        asked.append(path)
        made._stop.set()
        raise ApiError(0, "Timeout", "no answer")

    made = Rebuilder(
        Node(driver="dra.net", name="n1", fresh=True),
        api=SimpleNamespace(get=get),  # type: ignore[arg-type]
        pods=SimpleNamespace(listed=True, all=lambda: pods),  # type: ignore[arg-type]
        keeper=SimpleNamespace(  # type: ignore[arg-type]
            sandboxes=SimpleNamespace(synchronized=True, of_pod=lambda _: ()),
            journal=SimpleNamespace(of_pod=lambda _: ()),
        ),
        engine=None,  # type: ignore[arg-type]
        preparer=None,  # type: ignore[arg-type]
        inputs=None,  # type: ignore[arg-type]
        event=lambda *_: None,
        compare=lambda: None,
    )
    assert not made.look()
    assert len(asked) == 1

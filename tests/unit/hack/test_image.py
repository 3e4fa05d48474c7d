"""The image builder: what goes into the image, and that the same files give the same bytes."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from hack import image
from hack.parts import PartError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_layer_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    """Times, owners and the order on the disk have no part in the layer; the x bit and links have."""
    layers = []
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        folder = tmp_path / str(number)
        (folder / "bin").mkdir(parents=True)
        for name in names:
            (folder / "bin" / name).write_text(name, encoding="ascii")
            os.utime(folder / "bin" / name, (number, number))
        (folder / "bin" / "a").chmod(0o700 if number else 0o755)
        (folder / "link").symlink_to("bin/a")
        layers.append(image.pack(folder))
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as tar:
        assert [(entry.name, oct(entry.mode), entry.mtime, entry.uid) for entry in tar if entry.isfile()] == [
            ("bin/a", "0o755", 0, 0),
            ("bin/b", "0o644", 0, 0),
        ]
        assert tar.getmember("link").linkname == "bin/a"


def test_the_image_has_what_the_daemon_needs_and_no_tools() -> None:
    """The distributions are those that the daemon depends on, not those of the tests."""
    names = {part.name.lower() for part in image.distributions()}
    assert {"grpcio", "pydantic", "urllib3", "nri-dranet"} <= {name.replace("_", "-") for name in names}
    assert not names & {"pytest", "mypy", "ruff", "hypothesis"}


def test_a_distribution_that_is_missing_is_named() -> None:
    """Who has not set up the environment is told which distribution is missing and how to get it."""
    with pytest.raises(PartError, match="no-such-thing is not installed: run `make setup`"):
        image.distributions("no_such.thing")


def test_the_bill_names_each_distribution_once() -> None:
    """The SBOM is CycloneDX, with a package URL for each distribution; nri-dranet is what it is about."""
    bill = json.loads(json.dumps(image.sbom(image.distributions())))
    urls = [component["purl"] for component in bill["components"]]
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert len(urls) == len(set(urls))
    assert any(url.startswith("pkg:pypi/grpcio@") for url in urls)
    assert not any("nri-dranet" in url for url in urls)


def test_another_platform_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The builder makes images of its own machine alone, and says what makes the others."""
    with pytest.raises(SystemExit):
        image.main(["--platform", "linux/s390x"])
    assert "for linux/s390x use the Dockerfile" in capsys.readouterr().err

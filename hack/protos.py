"""Regenerate the protobuf stubs in ``nri_dranet/pb`` from ``protos/*.proto``, or check that they are current.

The generator is pinned: stubs made by it load on that protobuf major and on later ones, while stubs of a newer
generator refuse to load on an older runtime. It lives in a virtual environment of its own, so that the version of
protobuf that the project is developed with does not matter.

    python hack/protos.py            write the stubs
    python hack/protos.py --check    change nothing, fail when the stubs differ from what the protos say
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "nri_dranet" / "pb"
VENV = ROOT / ".cache" / "protos-venv"

# protobuf 5.29's generator. setuptools: grpc_tools.protoc imports pkg_resources, which later releases lack.
REQUIREMENTS = ("grpcio-tools==1.71.2", "setuptools==80.9.0")

# The name under which a proto is registered in the descriptor pool and imported by others. It makes the stubs
# import each other as nri_dranet.pb.x_pb2 and keeps them apart from other packages' files of the same name.
VIRTUAL = "nri_dranet/pb"


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; those of the process when not given.

    Returns:
        The exit code: 1 when ``--check`` found a difference.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when the stubs differ, write nothing")
    check: bool = parser.parse_args(argv).check

    wanted = generate(generator())
    present = {path.name: path.read_bytes() for path in STUBS.glob("*_pb2.py*")}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"{STUBS.relative_to(ROOT) / name}: differs from protos/, run: python hack/protos.py")
        return 1 if stale else 0
    for name in stale:
        path = STUBS / name
        if name in wanted:
            path.write_bytes(wanted[name])
            print(f"wrote {path.relative_to(ROOT)}")
        else:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    return 0


def generator() -> Path:
    """Return the Python that has the pinned generator, and set it up when it is not there.

    Returns:
        The path of the interpreter.

    Raises:
        subprocess.CalledProcessError: The generator could not be installed.
    """
    python = VENV / "bin" / "python"
    stamp = VENV / "requirements"
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        venv.create(VENV, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def generate(python: Path) -> dict[str, bytes]:
    """Run the generator over every proto.

    Args:
        python: The interpreter that has grpcio-tools.

    Returns:
        The stubs by file name.

    Raises:
        subprocess.CalledProcessError: A proto is wrong. The generator has said why on stderr.
    """
    sources = sorted(path.name for path in PROTOS.glob("*.proto"))
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [
                python,
                "-W",
                "ignore",
                "-m",
                "grpc_tools.protoc",
                f"--proto_path={VIRTUAL}={PROTOS}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                *(f"{VIRTUAL}/{name}" for name in sources),
            ],
            check=True,
        )
        return {path.name: path.read_bytes() for path in (Path(out) / VIRTUAL).iterdir()}


if __name__ == "__main__":
    sys.exit(main())

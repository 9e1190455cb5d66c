"""image/install-efa run whole in a container, with an installer that stands in for AWS's: what it asks of it, what it
makes of its result, and what it refuses. AWS's own is behind a network that a build machine may not have."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from image.containers import Container, Containers
from support import ROOT

WHOLE = """
mkdir -p /opt/amazon/efa/lib /opt/amazon/ofi-nccl/lib
echo | gcc -shared -x c - -Wl,-soname,libfabric.so.1 -o /opt/amazon/efa/lib/libfabric.so.1
touch /opt/amazon/efa/lib/libfabric.a
echo 'int ncclNetPlugin_v10(void) { return 0; }' | gcc -shared -fPIC -x c - \\
    -o /opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so -Wl,--no-as-needed -L/tmp/needed -l:libcudart.so.13
cp /bin/true /usr/local/bin/was-setuid && chmod u+s /usr/local/bin/was-setuid
"""

SHOW = """
echo "asked: $(cat /asked)"
ldconfig -p | grep -c -e libnccl-net-ofi.so -e libfabric.so.1
ls /var/lib/apt/lists /opt/amazon/efa/lib
find / -xdev -type f -perm /6000
"""


def installs(containers: Containers, tmp_path: Path, script: str, *, needed: str = "libcudart.so.13") -> Container:
    """Where AWS's installer is this shell script, and its plugin needs that library."""
    (tmp_path / "aws-efa-installer").mkdir()
    installer = tmp_path / "aws-efa-installer" / "efa_installer.sh"
    installer.write_text(f'#!/bin/sh\nset -e\necho "$*" >/asked\n{script.replace("libcudart.so.13", needed)}\n')
    installer.chmod(0o755)
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as archive:
        archive.add(installer.parent, "aws-efa-installer")
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    stub = f"mkdir /tmp/needed && echo | gcc -shared -x c - -Wl,-soname,{needed} -o /tmp/needed/{needed}"
    container = containers.start(
        *("sh", "-c", f"set -e\n{stub}\n/install-efa\n{SHOW}"),
        env={
            "EFA_URL": "file:///it.tar.gz",
            "EFA_SHA256": hashlib.sha256((tmp_path / "it.tar.gz").read_bytes()).hexdigest(),
        },
        # The packages that AWS's would install are not wanted, nor the lists of Debian's.
        mounts={
            tmp_path / "it.tar.gz": "/it.tar.gz:ro",
            ROOT / "image" / "install-efa": "/install-efa:ro",
            tmp_path / "apt-get": "/usr/bin/apt-get:ro",
        },
    )
    container.wait(60)
    return container


def test_the_plugin_is_found_by_name_and_nothing_else_stays(containers: Containers, tmp_path: Path) -> None:
    container = installs(containers, tmp_path, WHOLE)
    assert container.wait() == 0, container.logs()
    asked, found, *listed = container.logs(stderr=False).splitlines()
    assert asked == "asked: -y --build-ngc --skip-kmod --skip-limit-conf --skip-mpi --no-verify"
    assert found == "2"
    assert listed == ["/opt/amazon/efa/lib:", "libfabric.so.1", "", "/var/lib/apt/lists:"]


@pytest.mark.parametrize(
    ("script", "needed", "said"),
    [
        ("exit 3", "libcudart.so.13", "error: AWS's EFA installer failed. "),
        ("true", "libcudart.so.13", "error: EFA is not whole. /opt/amazon/efa/lib/libfabric.so.1 is not there"),
        (f"{WHOLE}\nmkdir /opt/amazon/openmpi", "libcudart.so.13", "EFA installer brought /opt/amazon/openmpi. "),
        (f"{WHOLE}\nmkdir /root/.ssh", "libcudart.so.13", "EFA installer brought /root/.ssh. "),
        (WHOLE, "libcudart.so.12", "It needs libcudart.so.12, which the image has not"),
    ],
)
def test_what_is_not_as_it_should_be_makes_no_image(
    containers: Containers, tmp_path: Path, script: str, needed: str, said: str
) -> None:
    container = installs(containers, tmp_path, script, needed=needed)
    assert container.wait() != 0
    assert said in container.logs(stdout=False)
    assert "asked:" not in container.logs(stderr=False)

"""The generated stubs describe protos/rill.proto."""

import subprocess
import sysconfig
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from servers import ROOT

from rill.v1 import rill_pb2

BUF = Path(sysconfig.get_path("scripts"), "buf")


def test_stubs_are_current():
    """Any protoc may generate them (`make protos` uses an old one), so their descriptor is compared, not their text."""
    command = [BUF, "build", "--as-file-descriptor-set", "--exclude-source-info", "--output", "-"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    (wanted,) = FileDescriptorSet.FromString(built).file
    wanted.name = "rill/v1/rill.proto"  # the import path of the stubs; buf names files by their place in protos/
    found = FileDescriptorProto.FromString(rill_pb2.DESCRIPTOR.serialized_pb)
    for file in (wanted, found):
        for message in file.message_type:
            _drop_json_names(message)
    assert found == wanted, "run make protos"


def _drop_json_names(message) -> None:
    """Some compilers write the default down, others do not."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _drop_json_names(nested)

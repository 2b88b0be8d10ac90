"""What parsing sees of a file: imports, and calls that reach outside."""

from __future__ import annotations

import pytest

from shardload.cli.demo_repo import repo
from shardload.remote_code.reach import contents_of

REACHES = {
    "import os\nos.system('id')": ("process", "os.system"),
    "import os as o\no.popen('id')": ("process", "os.popen"),
    "from os import system as s\ns('id')": ("process", "os.system"),
    "import os\nos.execv('/bin/sh', [])": ("process", "os.execv"),
    "import os\nos.posix_spawn('/bin/sh', [], {})": ("process", "os.posix_spawn"),
    "import subprocess\nsubprocess.run(['id'])": ("process", "subprocess.run"),
    "from subprocess import Popen\nPopen('id')": ("process", "subprocess.Popen"),
    "from subprocess import *\nrun('id')": ("process", "from subprocess import *"),
    "def f():\n    import subprocess as sp\n    sp.check_output('id')": ("process", "subprocess.check_output"),
    "import multiprocessing.pool\nmultiprocessing.pool.Pool()": ("process", "multiprocessing.pool.Pool"),
    "import os\ngetattr(os, 'system')('id')": ("process", "os.system"),
    "import socket\nsocket.create_connection(('a', 1))": ("network", "socket.create_connection"),
    "import urllib.request\nurllib.request.urlopen('http://x')": ("network", "urllib.request.urlopen"),
    "from urllib.request import urlretrieve\nurlretrieve('x')": ("network", "urllib.request.urlretrieve"),
    "import requests\nrequests.get('http://x')": ("network", "requests.get"),
    "import torch\ntorch.hub.load('a/b', 'c')": ("network", "torch.hub.load"),
    "from huggingface_hub import snapshot_download\nsnapshot_download('x')": (
        "network",
        "huggingface_hub.snapshot_download",
    ),
    "open('x', 'w')": ("file", "open(…, 'w')"),
    "open('x', mode='ab')": ("file", "open(…, 'ab')"),
    "open('x', m)": ("file", "open(…, a computed mode)"),
    "from pathlib import Path\nPath('x').write_text('y')": ("file", ".write_text()"),
    "from pathlib import Path\nPath('x').open('w')": ("file", ".open('w')"),
    "import shutil\nshutil.rmtree('x')": ("file", "shutil.rmtree"),
    "import os\nos.remove('x')": ("file", "os.remove"),
    "import torch\ntorch.save({}, 'x')": ("file", "torch.save"),
    "eval('1')": ("eval", "eval"),
    "exec(compile('1', 'x', 'exec'))": ("eval", "exec"),
    "e = eval\ne('1')": ("eval", "eval"),
    "__import__('os').system('id')": ("eval", "__import__"),
    "import importlib\nimportlib.import_module(name)": ("eval", "importlib.import_module"),
    "import pickle\npickle.loads(b'')": ("eval", "pickle.loads"),
    "import torch\ntorch.load('x', weights_only=False)": ("eval", "torch.load"),
    "import os\ngetattr(os, 'sys' + 'tem')": ("eval", "getattr(os, …) by a computed name"),
    "(lambda: 0).__globals__['x']": ("eval", ".__globals__"),
    "().__class__.__mro__[1].__subclasses__()": ("eval", ".__subclasses__"),
    "__builtins__['eval']": ("eval", "__builtins__"),
    "import ctypes\nctypes.CDLL('libc.so.6')": ("native", "ctypes.CDLL"),
    "from torch.utils.cpp_extension import load\nload('x', [])": ("native", "torch.utils.cpp_extension.load"),
    "import os\nos.environ['HF_TOKEN']": ("environment", "os.environ"),
    "from os import environ\nenviron.get('HF_TOKEN')": ("environment", "os.environ.get"),
}  # fmt: skip

HARMLESS = [
    "import os\nos.path.join('a', 'b')",
    "import torch\nmodel.eval()\ntorch.compile(model)",
    "import re\nre.compile('x')",
    "open('x')\nopen('x', 'rb')",
    "import importlib.util\nimportlib.util.find_spec('flash_attn')",
    "from types import SimpleNamespace\nSimpleNamespace()",
    "import json\njson.loads('1')",
    "code = 1\nprint(code)",
    "import math\ngetattr(self, 'x')\ngetattr(torch.nn, 'Linear')",
]


@pytest.mark.parametrize("source", REACHES, ids=lambda s: s.splitlines()[-1][:40])
def test_what_reaches_outside_is_seen_with_its_line(source):
    kind, what = REACHES[source]
    reaches = contents_of(source.encode(), "x.py").reaches
    assert (kind, what) in {(reach.kind, reach.what) for reach in reaches}
    assert all(1 <= reach.line <= len(source.splitlines()) for reach in reaches)


@pytest.mark.parametrize("source", HARMLESS, ids=lambda s: s.splitlines()[-1][:40])
def test_what_models_do_is_not_called_reaching_outside(source):
    assert contents_of(source.encode(), "x.py").reaches == ()


def test_imports_are_listed_wherever_they_stand():
    source = b"import torch.nn as nn\nfrom .configuration_x import C\ndef f():\n    from a.b import c\n"
    assert contents_of(source, "x.py").imports == (".configuration_x", "a", "torch")


def test_the_demos_own_code_reaches_nothing():
    folder = repo.Path(repo.__file__).parent / "chatglm2"
    for path in folder.glob("[cm]*_chatglm.py"):
        assert contents_of(path.read_bytes(), path.name).reaches == ()

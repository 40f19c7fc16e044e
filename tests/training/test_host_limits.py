import resource
import subprocess
import sys

PROGRAM = """
import resource
from dla_train.training.host_limits import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
print(allow_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_as_many_files_as_the_system_allows():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2_000 if hard == resource.RLIM_INFINITY else min(hard, 2_000)
    said = subprocess.run([sys.executable, "-c", PROGRAM.format(hard=most)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(most)] * 3
